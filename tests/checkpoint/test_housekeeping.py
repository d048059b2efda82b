"""What stands beside a run's checkpoints, and what of them goes."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401, I001

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from megatron_patch.checkpoint import housekeeping
from megatron_patch.checkpoint.save import RunProgress, save_checkpoint
from megatron_patch.config import Options
from megatron_patch.core import parallel
from megatron_patch.folders.fingerprint import Origin
from megatron_patch.folders.layout import copy_companions
from megatron_patch.folders.starting_point import own_checkpoint
from megatron_patch.folders.tracker import BEST_TRACKER, read_tracker, write_tracker
from megatron_patch.llama.model_config import LLAMA_SIZES
from megatron_patch.train.log import RunLog
from megatron_patch.train.setup import build_state
from megatron_patch.train.step import train_step
from tests.tiny import be_alone, tiny_config


def folders(root: Path, *numbers: int) -> None:
    """Iterations that were written in this order; the tracker names the last."""
    for place, number in enumerate(numbers):
        folder = root / f"iter_{number:07d}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "weights").touch()
        os.utime(folder, (1000 + place, 1000 + place))
    write_tracker(root, str(numbers[-1]))


def left(root: Path) -> list[str]:
    return sorted(path.name.removeprefix("iter_").lstrip("0") for path in root.glob("iter_*"))


@pytest.mark.parametrize(
    "written, keep, wanted",
    [
        ((50, 100, 150, 200), 0, ["100", "150", "200", "50"]),
        ((50, 100, 150, 200), 1, ["200"]),
        ((50, 100, 150, 200), 2, ["150", "200"]),
        ((50, 100, 150, 200), 9, ["100", "150", "200", "50"]),
        # Back from 200 to 100, and on: what lies ahead stays, and is not one of those that are kept.
        ((50, 100, 180, 200, 150), 1, ["150", "180", "200"]),
        ((50, 100, 180, 200, 150), 2, ["100", "150", "180", "200"]),
        # 180 is of the other course, and 150 must not go in its place; it goes when it is old itself.
        ((100, 180, 150, 200), 2, ["150", "180", "200"]),
        ((100, 180, 150, 200, 250), 2, ["200", "250"]),
    ],
)
def test_only_what_is_old_by_number_and_by_time_goes(tmp_path, written, keep, wanted):
    folders(tmp_path, *written)
    housekeeping.discard_old(tmp_path, keep)
    housekeeping.remove_left_over(tmp_path)
    assert left(tmp_path) == wanted


def test_a_negative_number_to_keep_is_an_error_and_removes_nothing(tmp_path):
    folders(tmp_path, 50, 100)
    with pytest.raises(ValueError, match="-1 training checkpoints cannot be kept"):
        housekeeping.discard_old(tmp_path, -1)
    assert left(tmp_path) == ["100", "50"]


def test_a_kill_amid_a_removal_leaves_nothing_that_looks_whole(tmp_path, monkeypatch):
    folders(tmp_path, 50, 100)

    def die(folder):
        raise KeyboardInterrupt

    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(shutil, "rmtree", die)
        housekeeping.discard_old(tmp_path, 1)
        housekeeping.remove_left_over(tmp_path)
    assert left(tmp_path) == ["100", "50.old.partial"]
    housekeeping.remove_left_over(tmp_path)
    assert left(tmp_path) == ["100"]


def test_what_cannot_be_removed_is_said_and_stops_nothing(tmp_path, monkeypatch, caplog):
    def fail(folder):
        raise OSError(39, "Directory not empty")

    (tmp_path / "iter_0000050.partial").mkdir()
    monkeypatch.setattr(shutil, "rmtree", fail)
    housekeeping.remove_left_over(tmp_path)
    assert "iter_0000050.partial is left over and could not be removed ([Errno 39] Directory not empty)" in caplog.text


def test_of_a_linked_checkpoint_the_link_goes(tmp_path):
    root, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    folders(root, 50, 100)
    os.replace(root / "iter_0000050", elsewhere)
    (root / "iter_0000050").symlink_to(elsewhere)
    housekeeping.discard_old(root, 1)
    housekeeping.remove_left_over(root)
    assert left(root) == ["100"] and (elsewhere / "weights").exists()


@pytest.fixture
def pretrained(tmp_path):
    """A converted checkpoint's root, without weights."""
    root = tmp_path / "pretrained"
    (root / "release").mkdir(parents=True)
    write_tracker(root, "release")
    for name in ("config.json", "tokenizer.model", "tokenizer_config.json"):
        (root / name).write_text(f"pretrained {name}")
    return root


def test_the_best_checkpoint_stays_and_one_that_was_only_the_best_goes_with_its_rank(tmp_path):
    folders(tmp_path, 50, 60, 100, 110, 150)
    for number in (60, 110):
        folder = tmp_path / f"iter_{number:07d}"
        times = folder.stat()
        (folder / housekeeping.ONLY_BEST).touch()
        os.utime(folder, (times.st_atime, times.st_mtime))
    write_tracker(tmp_path, "60", BEST_TRACKER)
    housekeeping.discard_surpassed(tmp_path)
    housekeeping.remove_left_over(tmp_path)
    assert left(tmp_path) == ["100", "150", "50", "60"]
    housekeeping.discard_old(tmp_path, 1)
    housekeeping.remove_left_over(tmp_path)
    assert left(tmp_path) == ["150", "60"]
    # Back to 50: what lies ahead is the user's.
    folders(tmp_path, 50)
    write_tracker(tmp_path, "50", BEST_TRACKER)
    housekeeping.discard_surpassed(tmp_path)
    housekeeping.remove_left_over(tmp_path)
    assert left(tmp_path) == ["150", "50", "60"]


@pytest.fixture(scope="module")
def trained():
    """A model of one layer, alone in its group, after a step."""
    be_alone()
    config = tiny_config(model=replace(LLAMA_SIZES["tiny"], num_layers=1, vocab_size=64), global_batch_size=1)
    state = build_state(config, parallel.start(config), RunLog(config, active=False), 4)
    row = torch.ones(1, 16, dtype=torch.long)
    train_step(state, iter([{"tokens": row, "labels": row, "loss_mask": torch.ones(1, 16)}]))
    yield state
    parallel.stop()


@pytest.fixture
def save(tmp_path, trained):
    """Save what was trained as an iteration's checkpoint; returns the run's folder."""

    def saved(iteration: int, load: Path | None = None, scheduler: object = None, **options: object) -> Path:
        config = replace(trained.config, output_path=str(tmp_path / "out"), load=load and str(load), options=Options(**options))
        progress = RunProgress(iteration, 0, 0, 0)
        return save_checkpoint(config, trained.model, trained.optimizer, scheduler or trained.scheduler, progress).parent

    return saved


def test_a_save_removes_what_killed_saves_left(save, trained, tmp_path):
    root = save(50)
    for name in ("iter_0000060.partial", "iter_0000070.partial", "mine.partial"):
        (root / name).mkdir()
        (root / name / "weights").touch()
    there = []

    def asked():
        there.extend(left(root))
        return trained.scheduler.state_dict()

    save(60, scheduler=SimpleNamespace(state_dict=asked))
    assert there == ["50", "60.partial"], "room is made before anything is written"
    assert left(root) == ["50", "60"] and (root / "mine.partial/weights").exists()


def test_a_save_under_a_number_that_is_there_replaces_it(save):
    root = save(50)
    (root / "iter_0000050/of the other course").touch()
    save(50)
    assert left(root) == ["50"] and not (root / "iter_0000050/of the other course").exists()


def test_a_save_after_going_back_keeps_what_the_tracker_names(save):
    for number in (100, 150, 200):
        root = save(number, keep_last=3)
    write_tracker(root, "100")
    save(150, keep_last=1)
    assert left(root) == ["150", "200"] and read_tracker(root) == "150"


def warnings_of(caplog) -> list[str]:
    """What this project has warned of; torch's writer logs as well."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("megatron_patch")]


def test_companions_are_copied_once(save, pretrained, caplog):
    root = save(50, pretrained)
    assert (root / "config.json").read_text() == "pretrained config.json" and (root / "tokenizer_config.json").exists()
    shutil.rmtree(pretrained)
    save(100, pretrained)
    assert read_tracker(root) == "100" and not warnings_of(caplog)


def test_a_checkpoint_to_copy_from_that_is_gone_costs_no_work(save, pretrained, caplog):
    """The weights were read hours ago; config.json is made instead, and the rest follows when the folder is back."""
    os.replace(pretrained, pretrained.with_name("moved"))
    root = save(50, pretrained)
    said = warnings_of(caplog)
    assert read_tracker(root) == "50" and '"hidden_size"' in (root / "config.json").read_text()
    assert len(said) == 1 and f"(there is no folder {pretrained} any more)" in said[0] and "tokenizer.model" in said[0]
    os.replace(pretrained.with_name("moved"), pretrained)
    save(100, pretrained)
    assert (root / "tokenizer.model").read_text() == "pretrained tokenizer.model" and warnings_of(caplog) == said


def test_companions_of_an_iteration_that_its_own_run_has_removed(save, pretrained, caplog):
    root = save(50, pretrained / "iter_0000010")
    assert (root / "tokenizer.model").exists() and not warnings_of(caplog)


def test_two_tokenizers_are_not_mixed(save, pretrained, tmp_path):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer/tokenizer.json").write_text("another")
    root = save(50, pretrained, tokenizer_path=str(tmp_path / "tokenizer"))
    assert (root / "tokenizer.json").read_text() == "another" and not (root / "tokenizer.model").exists()
    assert (root / "config.json").read_text() == "pretrained config.json"


def test_a_tokenizer_s_folder_that_is_gone_is_said(save, tmp_path, caplog):
    root = save(50, tokenizer_path=str(tmp_path / "gone"))
    assert read_tracker(root) == "50" and f"there is no folder {tmp_path / 'gone'}" in caplog.text


def test_half_a_companion_is_not_taken_for_one(pretrained, tmp_path, monkeypatch):
    target = tmp_path / "target"
    target.mkdir()

    def fill_up(source, path):
        Path(path).write_text("hal")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as full, pytest.raises(OSError, match="No space left"):
        full.setattr(shutil, "copyfile", fill_up)
        copy_companions(pretrained, target)
    assert "config.json" in copy_companions(pretrained, target)
    assert (target / "config.json").read_text() == "pretrained config.json"


def test_a_run_from_before_a_field_of_the_model_was_added_goes_on(tmp_path):
    """It has the field's default; another value is another model."""
    config = tiny_config(output_path=str(tmp_path))
    folder = Path(config.checkpoint_folder) / "iter_0000002"
    folder.mkdir(parents=True)
    write_tracker(folder.parent, "2")
    recorded = json.loads(json.dumps(config.as_dict()))
    del recorded["model"]["rope_type"], recorded["model"]["rope_factor"]
    (folder / "run_config.json").write_text(json.dumps(recorded))
    assert own_checkpoint(config, Origin()) == (folder, ())
    with pytest.raises(ValueError, match="rope_type was 'default' and is 'linear'"):
        own_checkpoint(replace(config, model=replace(config.model, rope_type="linear", rope_factor=2.0)), Origin())
