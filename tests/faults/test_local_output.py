"""`--local-output true`: two nodes with disks of their own keep a checkpoint's parts, and go on from them together."""

from __future__ import annotations

import os
import random
import shlex
import shutil

import pytest

from megatron_patch.arguments.conversion import Conversion
from megatron_patch.conversion.convert import convert
from megatron_patch.errors import UserError
from megatron_patch.folders.tracker import read_tracker, write_tracker
from megatron_patch.inspection.checkpoint import describe_checkpoint
from tests.faults.damage import flip_a_bit_of_each
from tests.faults.job import CASE
from tests.faults.survival import tensors
from tests.launching import PRETRAIN, PRETRAIN_ARGUMENTS, scalars, train
from tests.pai.nodes import Node, finish, nodes

pytestmark = pytest.mark.skipif("SOAK" not in os.environ, reason="half a minute of two nodes; make soak runs it")
ITERATIONS = 6
# Under ZeRO each rank keeps moments of its own, and the first one alone the weights: so each kind of reading occurs.
CHANGED = {**CASE, "DO": "true", "SAVE_INTERVAL": 1, "TRAIN_TOKENS": ITERATIONS * 2 * 32}
FLAGS = ("--num-workers", 0, "--eval-interval", 0)


def start(job: list[Node], folder, *flags) -> list[str]:
    """The documented call on both nodes, each with a disk of its own below `folder`; returns what each said."""
    output = folder / "out"
    values = {**PRETRAIN_ARGUMENTS, **CHANGED, "ENV": "dlc", "OUTPUT_BASEPATH": output}
    words = shlex.join(map(str, ["exec", "sh", PRETRAIN, *values.values(), *FLAGS, "--local-output", "true", *flags]))
    for rank, node in enumerate(job):
        disk = folder / node.name
        disk.mkdir(exist_ok=True)
        dlc = {"WORLD_SIZE": 2, "RANK": rank, "MASTER_ADDR": "node-0", "MASTER_PORT": 23456, "NPROC_PER_NODE": 1}
        node.start(words, {**dlc, "MAX_RESTARTS": 0}, [f"mount --bind {shlex.quote(str(disk))} {shlex.quote(str(output))}"])
    said = finish(job, timeout=500)
    assert [node.process.returncode for node in job] == [0, 0], "\n".join(said)[-6000:]
    return said


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """(the folder with both disks, what the nodes said when they went on) of a run that was stopped and started again.

    Meanwhile the second node had lost its newest checkpoint, as by a kill amid a save, and on the first node's disk
    bits of the one before had changed.
    """
    folder = tmp_path_factory.mktemp("nodes")
    (folder / "out").mkdir()
    with nodes(2, folder) as job:
        start(job, folder, "--exit-interval", 4)
        first, second = roots(folder)
        shutil.rmtree(second / "iter_0000004")
        write_tracker(second, "3")
        for path in (first / "iter_0000003").glob("*.distcp"):
            flip_a_bit_of_each(path, random.Random(1))
        said = start(job, folder)
    return folder, said


def roots(folder):
    return [next((folder / name / "checkpoint").iterdir()) for name in ("node-0", "node-1")]


def test_the_nodes_go_on_from_what_both_have_as_one_machine_would(ended, tmp_path):
    folder, said = ended
    assert "node 0 has iter_0000004, node 1 has iter_0000003; iter_0000003 is the last that all have" in said[1]
    assert "iter_0000003 cannot be used: " in said[1]
    assert "going on from iteration 2" in said[1] and "Traceback" not in "".join(said)
    assert all((root / "iter_0000003.damaged").is_dir() for root in roots(folder))
    train(PRETRAIN, tmp_path / "whole", processes=2, **CHANGED)
    assert scalars(folder / "node-1", "lm loss") == scalars(tmp_path / "whole", "lm loss")
    first, second = (root / f"iter_{ITERATIONS:07d}" for root in roots(folder))
    assert [read_tracker(root) for root in roots(folder)] == [str(ITERATIONS)] * 2
    kept = [{path.name for path in one.glob("*.distcp")} for one in (first, second)]
    assert kept[0] and kept[1] and not kept[0] & kept[1], "each node keeps its own"
    together = shutil.copytree(first, tmp_path / "together")
    shutil.copytree(second, together, dirs_exist_ok=True)
    assert tensors(together) == tensors(next((tmp_path / "whole" / "checkpoint").iterdir()) / first.name)


def test_conversion_and_inspection_say_which_files_are_on_which_node(ended, tmp_path):
    folder, _ = ended
    first, second = (root / f"iter_{ITERATIONS:07d}" for root in roots(folder))
    names = ", ".join(sorted(path.name for path in second.glob("*.distcp")))
    wanted = f"{first} holds the files of 1 of 2 nodes, which share no disk (--local-output): node 1 (node-1) keeps {names}. Copy"
    with pytest.raises(UserError) as refused:
        convert(Conversion(first, tmp_path / "hf", to_hf=True))
    assert str(refused.value).startswith(wanted)
    assert any(line.startswith(wanted) for line in describe_checkpoint(roots(folder)[0]))
    for name in names.split(", "):
        shutil.copyfile(second / name, first / name)
    assert convert(Conversion(first, tmp_path / "hf", to_hf=True, verify=True)).verified
