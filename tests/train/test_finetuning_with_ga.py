"""Fine-tuning by iterations of a global batch learns what LlamaForCausalLM learns: whose samples, at which rate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_patch.arguments.training import ARGUMENTS, read
from tests.launching import GOLDEN, WITH_GA_ARGUMENTS, scalars
from tests.train.in_process import finetune

MODEL = GOLDEN / "megatron_2023/september/mha_tp1_pp1"  # hf_mha
RECORDS = (0, 1, 2, 3, 7, 8)  # those that the original encodes rightly (golden/sft)
LR, MIN_LR, STEPS, WARMUP, BATCH = 1e-3, 1e-4, 8, 3, 4


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("GPUS_PER_NODE", "1")


@pytest.fixture
def data(tmp_path) -> Path:
    records = json.loads((GOLDEN / "sft" / "alpaca_output.json").read_text(encoding="utf-8"))
    path = tmp_path / "data.json"
    path.write_text(json.dumps([records[number] for number in RECORDS], ensure_ascii=False), encoding="utf-8")
    return path


def learning_rate(step: int) -> float:
    """Up to LR in WARMUP iterations, then straight down to MIN_LR, WARMUP iterations before the end, as upstream's."""
    if step <= WARMUP:
        return LR * step / WARMUP
    return max(MIN_LR, LR - (LR - MIN_LR) * (step - WARMUP) / (STEPS - WARMUP - WARMUP))


def wanted() -> dict[int, float]:
    """Iteration → loss of transformers and torch's AdamW on the original's own ids and masks."""
    golden = np.load(GOLDEN / "sft" / "finetune_pad80.npz")
    tokens, mask = (torch.from_numpy(golden[key])[list(RECORDS)].long() for key in ("input_ids", "loss_mask"))
    tokens = tokens.masked_fill(tokens >= 800, 0)  # padding, of which nothing is learnt
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / "hf_mha", dtype=torch.float32)
    groups = [
        {"params": [one for one in model.parameters() if (one.dim() > 1) == decayed], "weight_decay": 0.1 * decayed}
        for decayed in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-8)
    passes = [torch.randperm(len(RECORDS), generator=torch.Generator().manual_seed(1234 + number)) for number in range(STEPS)]
    losses = {}
    for step, batch in enumerate([batch for order in passes for batch in order.split(BATCH)][:STEPS]):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step)
        logits = model(tokens[batch, :-1]).logits.transpose(1, 2)
        each = torch.nn.functional.cross_entropy(logits, tokens[batch, 1:], reduction="none") * mask[batch, 1:]
        loss = each.sum() / mask[batch, 1:].sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses[step + 1] = loss.item()
    return losses


def test_each_iteration_is_the_reference_s_and_of_evaluations_the_best_checkpoint_is_left(alone, data, tmp_path):
    """Two micro-batches of 2 samples. It evaluates each iteration and saves at the end: what only was the best goes."""
    state = finetune(
        alone, tmp_path / "out", "--eval-interval=1", "--save-best", task="finetune_with_ga", DATASET_PATH=data, LR=LR,
        VALID_DATASET_PATH=data, MIN_LR=MIN_LR, BATCH_SIZE=2, GLOBAL_BATCH_SIZE=BATCH, TRAIN_ITERS=STEPS, WARMUP_ITERS=WARMUP,
        PRETRAIN_CHECKPOINT_PATH=MODEL,
    )  # fmt: skip
    rates = {step + 1: pytest.approx(learning_rate(step), rel=1e-6) for step in range(STEPS)}
    assert scalars(tmp_path / "out", "learning-rate") == rates
    assert scalars(tmp_path / "out", "lm loss") == {step: pytest.approx(loss, rel=1e-4) for step, loss in wanted().items()}
    losses = scalars(tmp_path / "out", "lm loss validation")
    assert list(losses) == [*range(1, STEPS + 1)] and losses[STEPS] == min(losses.values())
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
