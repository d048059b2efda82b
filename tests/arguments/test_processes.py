"""How many processes run where, in DSW's, DLC's and Kubeflow's environments; tests/pai trains as such jobs."""

from __future__ import annotations

from dataclasses import replace

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


PET = {
    "PET_NNODES": "3", "PET_NODE_RANK": "2", "PET_NPROC_PER_NODE": "2",
    "PET_MASTER_ADDR": "job-node-0-0.job", "PET_MASTER_PORT": "29400",
}  # fmt: skip


def test_kubeflow_trainer_says_the_same_in_pet_variables(gpus):
    plan, findings = plan_processes("dlc", 1, PET)
    assert (plan.nodes, plan.node_rank, plan.per_node, plan.world_size) == (3, 2, 2, 6) and not findings
    assert (plan.master_addr, plan.master_port) == ("job-node-0-0.job", 29400)
    for word in ("auto", "gpu", "cpu", ""):  # what torchrun would count by itself
        assert plan_processes("dlc", 2, {**PET, "PET_NPROC_PER_NODE": word}) == (replace(plan, per_node=gpus or 2), [])
    dlc = {"WORLD_SIZE": "3", "RANK": "1", "MASTER_ADDR": "master-0", "MASTER_PORT": "23456", "NPROC_PER_NODE": "5"}
    plan, findings = plan_processes("dlc", 1, {**PET, **dlc})
    assert (plan.node_rank, plan.per_node, plan.master_addr) == (1, 5, "master-0") and not findings, "DLC's own win"


def test_kubeflow_variables_that_cannot_be_used_are_named():
    _, findings = plan_processes("dlc", 1, {**PET, "PET_NODE_RANK": "3", "PET_MASTER_PORT": ""})
    assert [sentence.split(";")[0] for sentence in findings] == [
        "dlc takes PET_MASTER_PORT from the environment, which lacks them: write dsw, or run as a DLC job.",
        "PET_NODE_RANK is 3 and PET_NNODES 3",
    ]


def test_a_world_size_that_counts_processes_is_refused():
    """Kubeflow's PyTorchJob with nprocPerNode: 8 on two nodes; RANK and PET_NNODES count nodes all the same."""
    job = {"WORLD_SIZE": "16", "RANK": "1", "MASTER_ADDR": "job-master-0", "MASTER_PORT": "23456", "PET_NNODES": "2"}
    _, findings = plan_processes("dlc", 1, job)
    assert len(findings) == 1 and "WORLD_SIZE is 16 and PET_NNODES 2" in findings[0] and "nprocPerNode" in findings[0]
    for harmless in ({"WORLD_SIZE": "2"}, {"PET_NNODES": "1:4"}):  # the same count; an elastic range
        assert not plan_processes("dlc", 1, {**job, **harmless})[1]


def test_torchrun_s_processes_count_as_their_launcher_did(monkeypatch):
    """torchrun has written over WORLD_SIZE and RANK, which under dlc counted nodes."""
    monkeypatch.setattr(processes, "visible_gpus", lambda: 8)
    environment = {
        "TORCHELASTIC_RUN_ID": "none", "WORLD_SIZE": "16", "RANK": "11", "GROUP_WORLD_SIZE": "2", "GROUP_RANK": "1",
        "LOCAL_WORLD_SIZE": "8", "LOCAL_RANK": "3", "MASTER_ADDR": "master-0", "MASTER_PORT": "23456", "NPROC_PER_NODE": "8",
    }  # fmt: skip
    plan, findings = plan_processes("dlc", 2, environment)
    assert (plan.nodes, plan.node_rank, plan.per_node, plan.world_size) == (2, 1, 8, 16) and not findings


@pytest.mark.parametrize("address", ["master 0", "tcp://master-0", "master-0:23456/", "master-0\n"])
def test_an_address_that_no_host_has_is_named(address):
    environment = {"WORLD_SIZE": "2", "RANK": "1", "MASTER_ADDR": address, "MASTER_PORT": "23456"}
    (finding,) = plan_processes("dlc", 1, environment)[1]
    assert finding.startswith("MASTER_ADDR is '") and "host name or address alone" in finding


def test_one_node_needs_no_name_server():
    """torch resolves the address also where one node meets itself, for ten minutes."""
    dlc = {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "not-yet-in-the-name-server", "MASTER_PORT": "23456"}
    pet = {"PET_NNODES": "1", "PET_NODE_RANK": "0", "PET_MASTER_ADDR": "job-node-0-0.job", "PET_MASTER_PORT": "23456"}
    for environment in (dlc, pet):
        plan, findings = plan_processes("dlc", 1, environment)
        assert (plan.master_addr, plan.master_port, findings) == ("127.0.0.1", 23456, [])


def test_a_dlc_job_is_started_again_three_times_unless_told_otherwise():
    dlc = {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "master-0", "MASTER_PORT": "23456"}
    assert [plan_processes(env, 1, dlc)[0].max_restarts for env in ("dlc", "dsw")] == [3, 0]
    assert [plan_processes(env, 1, dlc | {"MAX_RESTARTS": "1"})[0].max_restarts for env in ("dlc", "dsw")] == [1, 1]
