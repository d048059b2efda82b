"""A run that goes on under another NAME and in another layout learns what the uninterrupted run learns."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from megatron_patch.checkpoint.restore import restore
from megatron_patch.checkpoint.save import RunProgress, save_checkpoint
from megatron_patch.train.log import RunLog
from megatron_patch.train.setup import build_state
from tests.launching import (
    FINETUNE,
    FINETUNE_ARGUMENTS,
    GOLDEN,
    PRETRAIN,
    PRETRAIN_ARGUMENTS,
    convert,
    run_forked,
    scalars,
    succeed,
)
from tests.tiny import tiny_config

CORPUS = GOLDEN / "data" / "corpus_text_document"


def start(script, output: Path, *flags, processes=1, **changed):
    """A run's output, and its losses by iteration; of the runs below `output` the latest."""
    defaults = PRETRAIN_ARGUMENTS if script == PRETRAIN else FINETUNE_ARGUMENTS
    assert set(changed) <= set(defaults)
    values = {**defaults, **changed, "OUTPUT_BASEPATH": output}
    shutil.rmtree(output / "tensorboard", ignore_errors=True)
    said = succeed(run_forked(script, *values.values(), "--num-workers", 0, "--eval-interval", 0, *flags, processes=processes))
    return said, scalars(output, "lm loss")


def folder(output: Path, *parts: str) -> Path:
    """The one run in `output` whose name holds all `parts`."""
    (found,) = [path for path in (output / "checkpoint").iterdir() if all(part in path.name for part in parts)]
    return found


def test_a_run_goes_on_with_other_settings(tmp_path):
    """Each part has another layout than the one before: PP1→PP2→PP1→TP2, DP1→DP2→DP1, without and with ZeRO-1."""
    for end in (".bin", ".idx"):
        shutil.copy(f"{CORPUS}{end}", tmp_path / f"corpus{end}")
    out = tmp_path / "out"
    common = dict(MODEL_SIZE="tiny", TRAIN_TOKENS=8 * 4 * 32, WARMUP_TOKENS=2 * 4 * 32, SAVE_INTERVAL=2, BATCH_SIZE=2)
    _, whole = start(PRETRAIN, out, DATASET_PATH=tmp_path / "corpus", **common)
    assert sorted(whole) == list(range(1, 9))
    first = folder(out)

    settings = common | dict(PP=2, DO="true", DATASET_PATH=tmp_path / "corpus")
    said, losses = start(PRETRAIN, out, "--exit-interval", 2, "--resume-from", first / "iter_0000002", processes=2, **settings)
    assert "with other settings (DO was false and is true; PP was 1 and is 2)" in said
    assert losses == pytest.approx({n: whole[n] for n in (3, 4)}, rel=1e-5)

    # The original's way: the run's folder as PRETRAIN_CHECKPOINT_PATH.
    settings |= dict(PP=1, AC="full", BATCH_SIZE=1, PRETRAIN_CHECKPOINT_PATH=folder(out, "-pp-2-"))
    said, losses = start(PRETRAIN, out, "--exit-interval", 2, processes=2, **settings)
    assert "AC was 'sel' and is 'full'; BATCH_SIZE was 2 and is 1; PP was 2 and is 1" in said
    assert losses == pytest.approx({n: whole[n] for n in (5, 6)}, rel=1e-5)

    # Data and output have moved, and the run's folder has another name.
    (tmp_path / "data").mkdir()
    for end in (".bin", ".idx"):
        (tmp_path / f"corpus{end}").rename(tmp_path / f"data/text{end}")
    out = out.rename(tmp_path / "moved")
    renamed = folder(out, "-bs-1-").rename(out / "checkpoint/mine")
    settings |= dict(TP=2, DO="false", DATASET_PATH=tmp_path / "data/text", PRETRAIN_CHECKPOINT_PATH="none")
    _, losses = start(PRETRAIN, out, "--resume-from", renamed, processes=2, **settings)
    assert losses == pytest.approx({n: whole[n] for n in (7, 8)}, rel=1e-5)


def test_fine_tuning_goes_on_with_more_epochs_and_other_batches(tmp_path):
    """At a constant rate, so that the longer decay changes nothing. The last batch of each pass lacks a sample."""
    model = convert(GOLDEN / "hf_mha", tmp_path / "model")
    data = tmp_path / "data.json"
    data.write_text(json.dumps([{"instruction": f"Count {n}.", "output": "One, two. " * n} for n in range(1, 8)]))
    paths = dict(PRETRAIN_CHECKPOINT_PATH=model, TRAIN_DATASET_PATH=data, VALID_DATASET_PATH=data, MIN_LR="1e-3")
    _, whole = start(FINETUNE, tmp_path / "whole", processes=2, EPOCH=2, **paths)
    assert sorted(whole) == list(range(1, 9))
    start(FINETUNE, tmp_path / "out", BATCH_SIZE=2, EPOCH=1, **paths)
    # The model that it began with has gone; the run's folder has the tokenizer, and hands it on.
    model.rename(tmp_path / "gone")
    flags = ("--gradient-accumulation-steps", 2, "--resume-from", folder(tmp_path / "out"))
    said, losses = start(FINETUNE, tmp_path / "out", *flags, EPOCH=2, **paths | dict(PRETRAIN_CHECKPOINT_PATH="none"))
    assert "It becomes longer (epochs (EPOCH) was 1 and is 2)" in said and "cosine decay" in said
    assert losses == pytest.approx({n: whole[n] for n in (5, 6, 7, 8)}, rel=1e-5)
    assert (folder(tmp_path / "out", "-ep-2-") / "tokenizer.model").is_file()


def test_a_longer_run_follows_the_longer_decay(alone, tmp_path):
    """Linear from 1e-3 to 1e-4: after 2 of 4 iterations half of the way, after 2 of 8 a quarter."""
    config = tiny_config(output_path=str(tmp_path))
    short, longer = (build_state(config, alone, RunLog(config, active=False), count) for count in (4, 8))
    short.optimizer.chained_optimizers[0].optimizer.make_state()
    short.scheduler.step(increment=2)
    saved = save_checkpoint(config, short.model, short.optimizer, short.scheduler, RunProgress(2, 4, 0, 0))
    restore(saved, longer.model, longer.optimizer, longer.scheduler)
    rates = [state.optimizer.param_groups[0]["lr"] for state in (short, longer)]
    assert rates == pytest.approx([1e-3 - 0.5 * 9e-4, 1e-3 - 0.25 * 9e-4], rel=1e-12)
