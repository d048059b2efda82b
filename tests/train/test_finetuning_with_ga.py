"""Fine-tuning by iterations of a global batch learns what LlamaForCausalLM learns: whose samples, at which rate."""

from __future__ import annotations

from pathlib import Path

import pytest

from megatron_patch.arguments.training import ARGUMENTS, read
from tests.launching import WITH_GA_ARGUMENTS, scalars
from tests.train.in_process import finetune
from tests.train.reference import MODEL, losses, write_records

LR, MIN_LR, STEPS, WARMUP, BATCH = 1e-3, 1e-4, 8, 3, 4


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("GPUS_PER_NODE", "1")


@pytest.fixture
def data(tmp_path) -> Path:
    return write_records(tmp_path / "data.json")


def learning_rate(step: int) -> float:
    """Up to LR in WARMUP iterations, then straight down to MIN_LR, WARMUP iterations before the end, as upstream's."""
    if step <= WARMUP:
        return LR * step / WARMUP
    return max(MIN_LR, LR - (LR - MIN_LR) * (step - WARMUP) / (STEPS - WARMUP - WARMUP))


def test_each_iteration_is_the_reference_s_and_of_evaluations_the_best_checkpoint_is_left(alone, data, tmp_path):
    """Two micro-batches of 2 samples. It evaluates each iteration and saves at the end: what only was the best goes."""
    state = finetune(
        alone, tmp_path / "out", "--eval-interval=1", "--save-best", task="finetune_with_ga", DATASET_PATH=data, LR=LR,
        VALID_DATASET_PATH=data, MIN_LR=MIN_LR, BATCH_SIZE=2, GLOBAL_BATCH_SIZE=BATCH, TRAIN_ITERS=STEPS, WARMUP_ITERS=WARMUP,
        PRETRAIN_CHECKPOINT_PATH=MODEL,
    )  # fmt: skip
    rates = [learning_rate(step) for step in range(STEPS)]
    assert [*scalars(tmp_path / "out", "learning-rate").values()] == pytest.approx(rates, rel=1e-6)
    wanted = losses(rates, BATCH)
    assert scalars(tmp_path / "out", "lm loss") == {step: pytest.approx(loss, rel=1e-4) for step, loss in wanted.items()}
    found = scalars(tmp_path / "out", "lm loss validation")
    assert list(found) == [*range(1, STEPS + 1)] and found[STEPS] == min(found.values())
    root = Path(state.config.checkpoint_folder)
    assert [folder.name for folder in root.glob("iter_*")] == [f"iter_{STEPS:07d}"]
    assert root.name == (
        "dsw-finetune-megatron-llama2-auto-lr-0.001-bs-2-seqlen-128-pr-fp32-tp-1-pp-1-ac-sel-do-false-sp-false-tt-8-wt-3"
    )


def test_te_changes_nothing_and_is_said(data, tmp_path):
    values = {**WITH_GA_ARGUMENTS, "DATASET_PATH": data, "VALID_DATASET_PATH": data, "PRETRAIN_CHECKPOINT_PATH": MODEL}
    values |= {"OUTPUT_BASEPATH": tmp_path}
    named = ARGUMENTS["finetune_with_ga"]
    without, with_te = (
        read("finetune_with_ga", [f"{named[name].flag}={value}" for name, value in {**values, "TE": te}.items()])
        for te in ("false", "true")
    )
    assert without.config == with_te.config and without.config.decay_style == "linear" and without.config.task == "finetune"
    assert [note for note in with_te.notes if note not in without.notes] == [
        "$18 TE is true: this project's kernels do what Transformer Engine would; nothing changes."
    ]
