"""A damaged checkpoint of a run's own gives way to the one before, and the end is that of an uninterrupted run."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401, I001

import json
import random
import re
import shutil
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from megatron_patch.arguments.conversion import Conversion
from megatron_patch.checkpoint.initial_weights import load_weights
from megatron_patch.conversion.convert import convert
from megatron_patch.errors import UserError
from megatron_patch.folders.layout import check_small_files
from megatron_patch.formats.checksums import Record, combined, finish_together
from tests.faults.damage import DAMAGES, flip_a_bit_of_each, hurt
from tests.faults.in_process import EVERY, ITERATIONS, config_of, digest, iterations_in, root_of, train


@pytest.fixture(scope="module")
def whole(alone, tmp_path_factory):
    """The folder of the run that nothing happens to, its weights and optimizer state, and its losses."""
    folder = tmp_path_factory.mktemp("whole")
    state, log = train(config_of(folder), alone)
    return folder, digest(state), log.losses


@pytest.mark.parametrize("damage", DAMAGES, ids=[one.name for one in DAMAGES])
def test_the_run_goes_on_from_the_checkpoint_before(damage, whole, alone, tmp_path):
    folder, wanted, losses = whole
    config = config_of(shutil.copytree(folder, tmp_path / "run"))
    last, before = ITERATIONS, ITERATIONS - EVERY
    path = hurt(damage, root_of(config) / f"iter_{last:07d}", random.Random(damage.name))
    state, log = train(config, alone)
    (said,) = log.warnings
    assert f"iter_{last:07d} cannot be used: " in said and f"the run goes on from iter_{before:07d}." in said
    assert path.name in said, said
    (went_on,) = (line for line in log.lines if "going on from" in line)
    assert f"going on from iteration {before}: " in went_on, "said of the one that was read, and of no damaged one"
    assert digest(state) == wanted and log.losses == {number: losses[number] for number in range(before + 1, last + 1)}
    assert f"iter_{last:07d}.damaged" in iterations_in(config) and f"iter_{last:07d}" in iterations_in(config)


def test_every_bit_of_the_small_files_counts(whole):
    """Nothing else tells one number of a JSON file from another."""
    folder = root_of(config_of(whole[0])) / "iter_0000008"
    for name in ("model.json", "run_config.json", "metadata.json"):
        sound = (folder / name).read_bytes()
        key = sound.find(b'"crc32"')
        try:
            for place in (place for place in range(len(sound)) if key < 0 or not 0 <= place - key < 7):
                content = bytearray(sound)
                content[place] ^= 1 << place % 8
                (folder / name).write_bytes(content)
                with pytest.raises(UserError, match=re.escape(name)):
                    check_small_files(folder)
        finally:
            (folder / name).write_bytes(sound)
    check_small_files(folder)


@pytest.mark.parametrize("sums", [{}, [], {"model.json": ""}, {"model.json": 7}, {"model.json": "00000000", "a/b": "0"}])
def test_sums_of_another_form_are_a_sentence(tmp_path, sums):
    (tmp_path / "model.json").write_text(json.dumps({"crc32": sums}))
    with pytest.raises(UserError, match="model.json does not say which files have which CRC-32"):
        check_small_files(tmp_path)


def test_a_checkpoint_without_sums_is_read_as_before(whole, alone, tmp_path):
    """Of an earlier version."""
    config = config_of(shutil.copytree(whole[0], tmp_path / "run"))
    path = root_of(config) / "iter_0000008" / "model.json"
    described = json.loads(path.read_text())
    assert set(described.pop("crc32")) == {"model.json", "run_config.json", "metadata.json", "common.pt", ".metadata"}
    path.write_text(json.dumps(described))
    state, log = train(config, alone)
    assert log.warnings == [] and digest(state) == whole[1] and log.losses == {}


def test_the_newest_complete_one_may_be_several_before(whole, alone, tmp_path):
    folder, wanted, _ = whole
    config = config_of(shutil.copytree(folder, tmp_path / "run"))
    (root_of(config) / "iter_0000008" / "model.json").write_text("[]")
    shutil.rmtree(root_of(config) / "iter_0000006")
    for path in (root_of(config) / "iter_0000004").glob("*.distcp"):
        path.write_bytes(path.read_bytes()[:100])
    state, log = train(config, alone)
    assert [line.split(" cannot")[0][-12:] for line in log.warnings] == ["iter_0000008", "iter_0000004"]
    assert digest(state) == wanted and min(log.losses) == 3


def test_without_another_one_the_command_ends_and_nothing_is_renamed(whole, alone, tmp_path):
    config = config_of(shutil.copytree(whole[0], tmp_path / "run"))
    for number in (2, 4, 6):
        shutil.rmtree(root_of(config) / f"iter_{number:07d}")
    path = hurt(DAMAGES[0], root_of(config) / "iter_0000008", random.Random(1))
    with pytest.raises(UserError, match=f"{path.name} is damaged: the bytes of tensor .* have the CRC-32"):
        train(config, alone)
    assert iterations_in(config) == ["iter_0000008"]


def test_a_damaged_source_ends_the_command(whole, alone, tmp_path):
    """PRETRAIN_CHECKPOINT_PATH, and a conversion; of a conversion nothing is left."""
    folder = shutil.copytree(root_of(config_of(whole[0])), tmp_path / "run") / "iter_0000008"
    state, _ = train(config_of(tmp_path / "other", iterations=1, every=0), alone)
    load_weights(folder, state.model)
    for path in folder.glob("*.distcp"):
        flip_a_bit_of_each(path, random.Random(2))
    with pytest.raises(UserError, match="is damaged: the bytes of tensor .* have the CRC-32"):
        load_weights(folder, state.model)
    with pytest.raises(UserError, match="is damaged: the bytes of tensor .* have the CRC-32"):
        convert(Conversion(folder, tmp_path / "hf", to_hf=True))
    assert not list(tmp_path.glob("hf*"))


def test_weights_alone_start_a_run_and_resume_none(alone, tmp_path):
    config = config_of(tmp_path, iterations=2, save_weights_only=True)
    state, _ = train(config, alone)
    names = {path.name: path.stat().st_size for path in (root_of(config) / "iter_0000002").iterdir()}
    assert sum(names.values()) < 8 * sum(one.numel() for one in state.model.parameters()) + 40_000
    with pytest.raises(UserError, match="holds weights alone .*optimizer, learning-rate schedule and random state were not"):
        train(config, alone)
    other, log = train(config_of(tmp_path / "other", load=str(root_of(config)), iterations=2, every=0, lr=0.0, min_lr=0.0), alone)
    assert all(map(torch.equal, other.model.parameters(), state.model.parameters()))


class Ranks:
    """Two threads that give each other objects, as ranks do."""

    def __init__(self):
        self.barrier, self.given = threading.Barrier(2, timeout=60), [None, None]

    def exchange(self, rank):
        def give(here):
            self.given[rank] = here
            self.barrier.wait()
            everybodys = list(self.given)
            self.barrier.wait()
            return everybodys

        return give


@pytest.mark.parametrize("turn", range(40))
def test_sums_of_pieces_are_that_of_the_whole(turn, tmp_path):
    """Whatever the pieces and their order, and whichever rank has read them.

    In every fourth case one was read by none, and in half of these the file is damaged there.
    """
    chance, path = random.Random(turn), tmp_path / "file"
    content = bytearray(chance.randbytes(5000))
    crc = zlib.crc32(content)
    cuts = sorted({0, 5000, *(chance.randrange(1, 5000) for _ in range(1 + turn % 9))})
    assert combined(zlib.crc32(content[: cuts[1]]), zlib.crc32(content[cuts[1] :]), 5000 - cuts[1]) == crc
    pieces = list(zip(cuts, cuts[1:]))
    chance.shuffle(pieces)
    left_out = pieces.pop() if turn % 4 == 0 else None
    records = [Record(path, "tensor x", 6, 5000, crc) for _ in range(2)]
    for number, (start, end) in enumerate(pieces):
        records[number % 2].note(6 + start, memoryview(content)[start:end])
    is_damaged = turn % 8 == 0
    if is_damaged:
        content[left_out[0]] ^= 4
    path.write_bytes(b"before" + content)
    ranks = Ranks()
    with ThreadPoolExecutor(2) as pool:
        ends = [pool.submit(finish_together, [records[rank]], rank, ranks.exchange(rank)) for rank in range(2)]
    errors = [end.exception() for end in ends]
    assert all("the bytes of tensor x have the CRC-32" in str(error) for error in errors) if is_damaged else errors == [None] * 2
