"""What the operating system refuses is a sentence, and costs no checkpoint and no bit."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401, I001

import errno
import io
import os
import shutil
from pathlib import Path

import pytest
import torch

from megatron_patch.arguments.room_on_disk import closed_folder, space_finding
from megatron_patch.cli import convert as convert_script
from megatron_patch.core import parallel
from megatron_patch.data.indexed_pretrain import indexed_run_data
from megatron_patch.data.token_cache import Encoding, cached_at
from megatron_patch.errors import RunStopped, UserError, sentence
from megatron_patch.folders.durable_files import write_text
from megatron_patch.generate.answers_file import AnswersWriter, Query
from megatron_patch.plan.checkpoint_size import MARGIN, checkpoint_bytes
from megatron_patch.train.log import RunLog
from tests.faults.disks import absent, fill, remount, small_disk
from tests.faults.in_process import config_of, digest, iterations_in, root_of, train
from tests.launching import GOLDEN
from tests.tiny import source

WHY = absent()
mounts = pytest.mark.skipif(bool(WHY), reason=WHY)


@pytest.fixture(scope="module")
def whole(alone, tmp_path_factory):
    """The run that nothing happens to: its weights and optimizer state, and the bytes of one checkpoint."""
    config = config_of(tmp_path_factory.mktemp("whole"))
    state, _ = train(config, alone)
    return digest(state), sum(path.stat().st_size for path in (root_of(config) / "iter_0000008").iterdir())


# What happens before the fourth iteration, whose save is due; how it is undone before the sixth; what is said of it.
REFUSALS = {
    "the disk is full": ("size=16m", lambda disk: fill(disk), lambda disk: (disk / "filler").unlink(), "No space left on device"),
    "no inode is free": (
        "size=16m,nr_inodes=40",
        lambda disk: [(disk / f"file{number}").touch() for number in range(40 - len([*disk.rglob("*")]) - 3)],
        lambda disk: [path.unlink() for path in disk.glob("file*")],
        "No space left on device",
    ),
    "it becomes read-only": ("size=16m", lambda disk: remount(disk, "ro"), lambda disk: remount(disk, "rw"), "Read-only file"),
}


@mounts
@pytest.mark.parametrize("name", REFUSALS)
def test_a_refused_save_is_told_and_the_next_one_is_tried(name, whole, alone):
    options, happen, mend, said = REFUSALS[name]
    with small_disk(options) as disk:

        def meddle(state, done):
            if done == 3:
                happen(disk)
            if done == 4:
                assert iterations_in(config) == ["iter_0000002"], "of the refused one nothing is left, and the other stays"
            if done == 5:
                mend(disk)

        config = config_of(disk)
        state, log = train(config, alone, meddle)
        (warning,) = log.warnings
        assert warning.startswith("iteration 4 could not be saved (") and said in warning and str(disk) in warning, warning
        assert f"The last good checkpoint is {root_of(config) / 'iter_0000002'}." in warning
        assert iterations_in(config) == [f"iter_{number:07d}" for number in (2, 6, 8)] and digest(state) == whole[0]


@mounts
@pytest.mark.parametrize("when", ["the last one", "--fail-on-save-error"])
def test_a_save_that_must_not_fail_ends_the_run(when, whole, alone):
    with small_disk("size=16m") as disk:
        config = config_of(disk, fail_on_save_error=when != "the last one")
        last = 7 if when == "the last one" else 3
        with pytest.raises(RunStopped, match=f"iteration {last + 1} could not be saved .*No space left on device"):
            train(config, alone, lambda state, done: fill(disk) if done == last else None)
        (disk / "filler").unlink()
        state, _ = train(config_of(disk), alone)
        assert digest(state) == whole[0]


@pytest.mark.parametrize("number", [errno.EDQUOT, errno.EIO, errno.ENOSPC, errno.ESTALE])
@pytest.mark.parametrize("at", ["__0_0.distcp", "__0_1.distcp", "__0_objects.distcp", "common.pt", ".metadata"])
def test_every_file_of_a_save_and_every_refusal(number, at, whole, alone, tmp_path, monkeypatch):
    """What the system tells at the flush of a file, also in a thread."""

    def flushed(descriptor, flush=os.fsync):
        if failing and Path(os.readlink(f"/proc/self/fd/{descriptor}")).name == at:
            raise OSError(number, os.strerror(number))
        flush(descriptor)

    failing = []
    monkeypatch.setattr(os, "fsync", flushed)
    config = config_of(tmp_path)
    state, log = train(config, alone, lambda state, done: failing.append(1) if done == 3 else failing.clear())
    (warning,) = log.warnings
    assert os.strerror(number) in warning and f"iter_0000004.partial/{at}: " in warning
    assert iterations_in(config) == [f"iter_{number:07d}" for number in (2, 6, 8)] and digest(state) == whole[0]


def test_a_folder_that_is_removed_while_it_runs_is_made_again(whole, alone, tmp_path):
    config = config_of(tmp_path)
    state, log = train(config, alone, lambda state, done: shutil.rmtree(tmp_path / "checkpoint") if done == 3 else None)
    assert log.warnings == [] and iterations_in(config) == [f"iter_{number:07d}" for number in (4, 6, 8)]
    assert digest(state) == whole[0]


@mounts
def test_a_folder_that_may_not_be_written(whole, alone):
    """As a user without rights; root may write everywhere."""
    with small_disk("size=16m") as disk:
        config = config_of(disk)

        def meddle(state, done):
            if done == 3:
                os.seteuid(65534)
            if done == 4:
                os.seteuid(0)

        try:
            state, log = train(config, alone, meddle)
        finally:
            os.seteuid(0)
        (warning,) = log.warnings
        assert "Permission denied; change its owner or its permissions" in warning and digest(state) == whole[0]
        os.setreuid(65534, 0)  # access(2) asks for the real user
        try:
            said = closed_folder(config)
        finally:
            os.setreuid(0, 0)
        assert said is not None and said.startswith(f"the run writes in {disk / 'checkpoint'}, and nothing can be written there")


@mounts
def test_log_and_tensorboard_on_a_full_disk(alone, capfd):
    with small_disk("size=1m") as disk:
        log = RunLog(config_of(disk), active=True)
        filler = fill(disk)
        for number in range(200):
            log.line(f"line {number} {'x' * 100}")
            log.numbers({"lm loss": 1.0}, number, number)
        filler.unlink()
        log.line("and on the console it goes on")
        log.close()
    said = capfd.readouterr()
    assert "line 199 " in said.out and "and on the console it goes on" in said.out
    assert said.err.count("lines of the log are missing in the file") == 1 and "Traceback" not in said.err
    assert said.err.count("No space left on device") == said.err.count("warning: ") <= 3


@mounts
def test_other_commands_name_the_file(capfd):
    """Conversion, the results of an evaluation, the answers of generation."""
    with small_disk("size=200m,nr_inodes=5") as disk:
        arguments = {
            "megatron-path": "none",
            "source": GOLDEN / "hf_gqa",
            "target": disk / "new",
            "tensor-model-parallel-size": 1,
        }
        arguments |= {"pipeline-model-parallel-size": 1, "model-name": "auto", "extra-vocab-size": 0, "mg2hf": "false"}
        words = [word for name, value in arguments.items() for word in (f"--{name}", str(value))]
        status = convert_script.main(words)
        said = capfd.readouterr().err
        assert status == 1 and "No space left on device; make room there, in bytes and in inodes" in said and str(disk) in said
        assert f"Nothing was left at {disk / 'new'}." in said and "Traceback" not in said and not list(disk.iterdir())
        answers = AnswersWriter(disk / "answers", 0, "run")
        fill(disk)
        with pytest.raises(OSError, match="No space left on device: .*answers"):
            while True:
                answers.write(Query(0, "q" * 1000), "a", "stop")
        with pytest.raises(OSError, match="No space left on device: .*results"):
            write_text(disk / "results.json", "x" * 10_000)


@mounts
def test_a_full_disk_under_data_cache_is_named_and_leaves_nothing_that_is_cut(alone, tmp_path):
    """core's index files, which it writes in place, and the tokens of JSON data. With room the same call succeeds."""
    with small_disk("size=64k") as disk:
        config = config_of(disk, iterations=6000, train_data=source(str(GOLDEN / "data" / "corpus_text_document")))
        with pytest.raises(UserError) as refused:
            indexed_run_data(config, alone, lambda line: None)
        folder = next((disk / "data_cache").iterdir())
        assert str(refused.value) == (
            f"the samples' indices cannot be written: {folder}: No space left on device; make room there, in bytes and in "
            "inodes (df -h, df -i, quota)."
        )
        remount(disk, "size=16m")
        assert len(indexed_run_data(config, alone, lambda line: None).train) >= 12000
    with small_disk("size=64k") as disk:
        samples = [(list(range(100)), [True] * 100)] * 300
        with pytest.raises(OSError, match="No space left on device") as failed:
            cached_at(disk / "tokens.bin", lambda: Encoding(iter(samples)))
        assert sentence(failed.value).startswith(f"{disk}: No space left on device; make room there")
        assert [path.name for path in disk.iterdir()] == ["tokens.lock"]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("zero", [True, False])
@pytest.mark.parametrize("weights_only", [True, False])
def test_the_size_of_a_checkpoint_is_known_beforehand(precision, zero, weights_only, alone, tmp_path):
    config = config_of(
        tmp_path, iterations=1, precision=precision, use_distributed_optimizer=zero, save_weights_only=weights_only
    )
    train(config, alone)
    stored = sum(record.file_size for path in (root_of(config) / "iter_0000001").glob("*.distcp") for record in records(path))
    random_states = 0 if weights_only else sum(tensor.nbytes for tensor in tensors(parallel.rng_state()))
    assert stored - random_states == checkpoint_bytes(config) - MARGIN


def tensors(value):
    """Those in nested containers."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, (dict, list, tuple)):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from tensors(inner)


def records(path):
    """The storages of all archives in a file, as zips know them."""
    import re
    import zipfile

    content = path.read_bytes()
    starts = [found.start() for found in re.finditer(rb"PK\x03\x04.{26}archive/data.pkl", content, re.DOTALL)]
    for start, end in zip(starts, [*starts[1:], len(content)]):
        with zipfile.ZipFile(io.BytesIO(content[start:end])) as archive:
            yield from (record for record in archive.infolist() if record.filename.startswith("archive/data/"))


@mounts
def test_a_disk_without_room_for_one_is_found_at_the_start(alone):
    with small_disk("size=100k") as disk:
        config = config_of(disk)
        said = space_finding(config)
        assert said is not None and said.startswith("one checkpoint takes 0.00") and f"the disk of {disk} has 0.0001" in said
        left = root_of(config) / "iter_0000002.partial"
        left.mkdir(parents=True)
        (left / "__0_0.distcp").touch()
        os.truncate(left / "__0_0.distcp", 1 << 30)
        assert space_finding(config) is None, "what an interrupted save has left is removed before the next one"
