"""A finished fine-tuning goes on for more epochs: losses against transformers at the rates of each length."""

from __future__ import annotations

import math
import re

import pytest

from tests.launching import scalars
from tests.train.in_process import finetune
from tests.train.reference import MODEL, losses, write_records

LR, MIN_LR, BATCH, STEPS_OF_EPOCH = 1e-3, 1e-4, 3, 2


def learning_rate(step: int, epochs: int) -> float:
    """Half a cosine from LR to MIN_LR over the epochs; `step` counts from 0."""
    return MIN_LR + (LR - MIN_LR) * (1 + math.cos(math.pi * step / (epochs * STEPS_OF_EPOCH))) / 2


def test_more_epochs_keep_optimizer_and_order_and_follow_the_cosine_of_the_new_length(alone, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("GPUS_PER_NODE", "1")
    data = write_records(tmp_path / "data.json")
    values = dict(
        TRAIN_DATASET_PATH=data, VALID_DATASET_PATH=data, LR=LR, MIN_LR=MIN_LR, BATCH_SIZE=BATCH, PRETRAIN_CHECKPOINT_PATH=MODEL,
    )  # fmt: skip
    ended = finetune(alone, tmp_path / "out", EPOCH=2, **values)
    capsys.readouterr()
    finetune(alone, tmp_path / "out", EPOCH=2, **values)
    said = capsys.readouterr().out
    offered = re.search("the run has its 4 iterations; for more, raise EPOCH and add (--resume-from) (.*)", said)
    longer = finetune(alone, tmp_path / "out", "=".join(offered.groups()), EPOCH=5, **values)
    assert "going on from iteration 4" in capsys.readouterr().out and longer.steps_here == 6
    assert longer.config.checkpoint_folder != ended.config.checkpoint_folder, "EPOCH is part of the name"
    rates = [learning_rate(step, epochs=2 if step < 4 else 5) for step in range(10)]
    assert [*scalars(tmp_path / "out", "learning-rate").values()] == pytest.approx(rates, rel=1e-6)
    wanted = losses(rates, BATCH)
    assert scalars(tmp_path / "out", "lm loss") == {step: pytest.approx(loss, rel=1e-4) for step, loss in wanted.items()}
