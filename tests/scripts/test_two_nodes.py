"""A DLC job of two nodes, both on this machine: the documented script started once for each, as the platform does."""

from __future__ import annotations

import re
import subprocess

import pytest

from megatron_patch.arguments.processes import free_port
from tests.launching import GOLDEN, PRETRAIN, PRETRAIN_ARGUMENTS, environment, steps, train

ARGUMENTS = dict(
    MODEL_SIZE="tiny", DATASET_PATH=GOLDEN / "data" / "corpus_text_document", TRAIN_TOKENS=4 * 4 * 32, WARMUP_TOKENS=0
)
FLAGS = ("--num-workers", "0", "--eval-interval", "0")


def foreign_megatron(folder):
    """What a user's PYTHONPATH may still name: another Megatron-LM, which cannot be imported here."""
    (folder / "megatron" / "core").mkdir(parents=True)
    for place in ("megatron", "megatron/core"):
        (folder / place / "__init__.py").write_text("raise ImportError('the other Megatron was imported')\n")
    return folder


def test_two_nodes_train_as_two_processes_of_one(tmp_path):
    wanted = train(PRETRAIN, tmp_path / "one", processes=2, **ARGUMENTS)
    values = {**PRETRAIN_ARGUMENTS, **ARGUMENTS, "ENV": "dlc", "OUTPUT_BASEPATH": tmp_path / "two"}.values()
    job = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "NPROC_PER_NODE": 1}
    other = foreign_megatron(tmp_path / "Megatron-LM")
    nodes = [
        subprocess.Popen(
            ["dash", str(PRETRAIN), *map(str, values), *FLAGS], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=environment(job={**job, "RANK": rank, "PYTHONPATH": other}),
        )
        for rank in (0, 1)
    ]  # fmt: skip
    try:
        said = [node.communicate(timeout=150)[0] for node in nodes]
    finally:
        for node in nodes:
            node.kill()
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(said)[-4000:]
    assert list(steps(tmp_path / "two")) == wanted and len(wanted) == 4
    assert all(f"PYTHONPATH names {other}, which holds another Megatron; it is left out." in text for text in said)
    assert sum("iteration        4/       4" in text for text in said) == 1, "one rank of the whole job writes the log"
    spent, speed = re.search(r"4/       4 .*\(ms\): ([\d.]+) .*tokens per second per GPU: (\d+)", "".join(said)).groups()
    assert int(speed) * float(spent) / 1000 * 2 == pytest.approx(4 * 32, rel=0.02), "of each of two, not of both together"
