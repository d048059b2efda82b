"""How many processes, where: DSW's and DLC's environments. tests/scripts/test_two_nodes.py trains as a DLC job."""

from __future__ import annotations

import pytest

from megatron_patch.arguments import processes
from megatron_patch.arguments.processes import plan_processes


@pytest.fixture(params=[0, 4], ids=["no GPU", "4 GPUs"])
def gpus(request, monkeypatch):
    monkeypatch.setattr(processes, "visible_gpus", lambda: request.param)
    return request.param


def test_dsw_takes_the_gpus_or_what_the_layout_needs(gpus):
    plan, findings = plan_processes("dsw", 2, {})
    assert (plan.nodes, plan.node_rank, plan.per_node) == (1, 0, gpus or 2) and not findings
    assert plan_processes("dsw", 2, {"GPUS_PER_NODE": "8"})[0].per_node == (gpus or 8)


def test_dlc_counts_nodes_not_processes(gpus):
    environment = {"WORLD_SIZE": "3", "RANK": "2", "MASTER_ADDR": "master-0", "MASTER_PORT": "23456"}
    plan, findings = plan_processes("dlc", 2, environment)
    assert (plan.nodes, plan.node_rank, plan.per_node, plan.world_size) == (3, 2, gpus or 2, 3 * (gpus or 2))
    assert (plan.master_addr, plan.master_port) == ("master-0", 23456) and not findings
    assert plan_processes("dlc", 2, {**environment, "NPROC_PER_NODE": "5"})[0].per_node == 5
    both = {**environment, "NPROC_PER_NODE": "5", "KUBERNETES_CONTAINER_RESOURCE_GPU": "6"}
    assert plan_processes("dlc", 2, both)[0].per_node == 6


def test_dlc_without_its_environment_says_what_is_missing(gpus):
    _, findings = plan_processes("dlc", 1, {"WORLD_SIZE": "2", "RANK": "2"})
    assert any("MASTER_ADDR, MASTER_PORT" in sentence for sentence in findings)
    assert any("RANK is 2 and WORLD_SIZE 2" in sentence for sentence in findings)


def test_torchrun_s_processes_count_as_their_launcher_did(monkeypatch):
    """torchrun has written over WORLD_SIZE and RANK, which under dlc counted nodes."""
    monkeypatch.setattr(processes, "visible_gpus", lambda: 8)
    environment = {
        "TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "16", "RANK": "11", "GROUP_WORLD_SIZE": "2", "GROUP_RANK": "1",
        "LOCAL_WORLD_SIZE": "8", "LOCAL_RANK": "3", "MASTER_ADDR": "master-0", "MASTER_PORT": "23456", "NPROC_PER_NODE": "8",
    }  # fmt: skip
    plan, findings = plan_processes("dlc", 2, environment)
    assert (plan.nodes, plan.node_rank, plan.per_node, plan.world_size) == (2, 1, 8, 16) and not findings
