"""Nodes with networks of their own: one does not come, one is cut off, and two that share no disk."""

from __future__ import annotations

import os
import shlex
import subprocess
import time

import psutil
import pytest

from tests.faults.job import CASE, ITERATIONS
from tests.faults.survival import tensors
from tests.launching import PRETRAIN, PRETRAIN_ARGUMENTS, scalars
from tests.pai.nodes import Node, finish, nodes

FLAGS = ("--num-workers", 0, "--eval-interval", 0)


def command(output, *flags) -> str:
    """The documented call on each node, as a job's command."""
    values = {**PRETRAIN_ARGUMENTS, **CASE, "ENV": "dlc", "OUTPUT_BASEPATH": output}
    return shlex.join(map(str, ["exec", "sh", PRETRAIN, *values.values(), *FLAGS, *flags]))


def start(job: list[Node], words: str, only: tuple[int, ...] = (0, 1), mounts=(), **more) -> None:
    """Start a command on nodes of a job of two."""
    for rank in only:
        dlc = {"WORLD_SIZE": 2, "RANK": rank, "MASTER_ADDR": "node-0", "MASTER_PORT": 23456, "NPROC_PER_NODE": 1}
        job[rank].start(words, {**dlc, "MAX_RESTARTS": 0, **more}, mounts)


def test_each_says_whom_it_waits_for_and_ends(tmp_path):
    """The first node without the second, and the second without the first; each alone in its network."""
    ended = []
    for alone in (0, 1):
        folder = tmp_path / str(alone)
        folder.mkdir()
        with nodes(2, folder) as job:
            start(job, command(folder / "out", "--rendezvous-timeout-minutes", 0.05), only=(alone,))
            ended += [(finish(job[alone : alone + 1])[0], job[alone].process.returncode)]
    (first, status_0), (second, status_1) = ended
    assert (status_0, status_1) == (2, 2), first + second
    assert "node 1 did not come to node-0:23456 within 0.05 min (--rendezvous-timeout-minutes)" in first
    assert "node 1 of 2 could not reach node 0 at node-0:23456 within 0.05 min" in second and "No route to host" not in first
    assert "Traceback" not in first + second


def test_two_nodes_without_a_shared_disk_are_found_at_the_start(tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    with nodes(2, tmp_path) as job:
        start(job, command(output), mounts=[f"mount -t tmpfs tmpfs {output}"])
        said = finish(job)
    assert [node.process.returncode for node in job] == [2, 2], "\n".join(said)[-4000:]
    for text in said:
        assert f"OUTPUT_BASEPATH {output} is not one folder on all nodes: node 1 (node-1) does not see" in text
        assert "Traceback" not in text and "iteration        1/" not in text


@pytest.mark.skipif("SOAK" not in os.environ, reason="a minute of timed waiting; make soak runs it")
def test_a_late_node_is_waited_for_and_a_cut_link_ends_the_run(tmp_path):
    """Then the job is started again, and again by itself when a rank of a node is killed, and ends as one that nothing
    happened to."""
    output, whole = tmp_path / "out", tmp_path / "whole"
    flags = ("--distributed-timeout-minutes", 0.2)
    with nodes(2, tmp_path) as job:
        start(job, command(output, *flags), only=(0,))
        time.sleep(3)
        start(job, command(output, *flags), only=(1,))
        wait_for_iteration(output, 4, job)
        subprocess.run(["ip", "-n", job[1].namespace, "link", "set", "eth0", "down"], check=True)
        said = finish(job)
        assert [node.process.returncode for node in job] == [1, 1], "\n".join(said)[-6000:]
        assert "the run was ended: rank 1 (process " in said[0] and "has given no sign of life for 0.2 min" in said[0]
        assert "rank 1 has not reached node 0 for 0.2 min" in said[1]
        assert "Traceback" not in "".join(said)
        subprocess.run(["ip", "-n", job[1].namespace, "link", "set", "eth0", "up"], check=True)
        start(job, command(output), MAX_RESTARTS=1)
        wait_for_iteration(output, 20, job)
        rank_of(job[1]).kill()
        said = finish(job)
        assert [node.process.returncode for node in job] == [0, 0], "\n".join(said)[-6000:]
        assert all("is started again from its last checkpoint (1 of 1, MAX_RESTARTS)" in text for text in said), said
        start(job, command(whole))
        said = finish(job)
        assert [node.process.returncode for node in job] == [0, 0], "\n".join(said)[-6000:]
    wanted = scalars(whole, "lm loss")
    assert {**wanted, **scalars(output, "lm loss")} == wanted and len(wanted) == ITERATIONS
    last = [next((folder / "checkpoint").iterdir()) / f"iter_{ITERATIONS:07d}" for folder in (output, whole)]
    assert tensors(last[0]) == tensors(last[1])


def rank_of(node: Node) -> psutil.Process:
    """The training process of a node that runs one."""
    inner = psutil.Process(node.process.pid).children(recursive=True)
    commands = {one: one.cmdline() for one in inner}
    return next(one for one, words in commands.items() if "megatron_patch.cli.pretrain" in words and "-u" in words)


def wait_for_iteration(output, number: int, job: list[Node]) -> None:
    until = time.monotonic() + 200
    while not any(f"iteration {number:8}/" in log.read_text() for log in output.glob("log/*/train.log")):
        if time.monotonic() > until or any(node.process.poll() is not None for node in job):
            pytest.fail("\n".join(finish(job, 5)))
        time.sleep(0.1)
