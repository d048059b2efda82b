"""Twenty-one steps of fine-tuning learn what LlamaForCausalLM with torch's AdamW learns.

Prompts, masks, order of samples, learning rate and weight decay must be right for that.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.launching import FINETUNE, GOLDEN, Step, convert, train

LR, MIN_LR, EPOCHS, BATCH, PAD_LEN = 1e-3, 1e-4, 7, 2, 80
# Records that the original encodes rightly (golden/sft): no input, an input, no such key, an answer that is cut, line
# breaks, an answer that begins with a blank.
RECORDS = (0, 1, 2, 3, 7, 8)
STEPS = EPOCHS * len(RECORDS) // BATCH


def learning_rate(step: int) -> float:
    """Half a cosine from LR to MIN_LR over the run, without a warm-up; `step` counts from 0."""
    return MIN_LR + (LR - MIN_LR) * (1 + math.cos(math.pi * step / STEPS)) / 2


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """(tokens [6, 80], mask [6, 80]) as the original program made them."""
    golden = np.load(GOLDEN / "sft" / "finetune_pad80.npz")
    tokens, mask = (torch.from_numpy(golden[key])[list(RECORDS)] for key in ("input_ids", "loss_mask"))
    tokens = tokens.clone()
    tokens[tokens >= 800] = 0  # the original's padding lies outside the vocabulary; nothing is learnt there
    return tokens.long(), mask.float()


def reference() -> list[Step]:
    """The recipe: AdamW 0.9/0.95, decay 0.1 except on norms, clip 1.0, the mean over a batch's learnt tokens."""
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / "hf_gqa", dtype=torch.float32)
    decayed = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    norms = [parameter for parameter in model.parameters() if parameter.dim() == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": norms, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(0.9, 0.95), eps=1e-8)
    return steps_of(model, optimizer)


def steps_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[Step]:
    """The run's steps of what `optimizer` trains: order of samples, rate, clipping and loss as ours.

    A group keeps the ratio that its rate has to LR.
    """
    ratios = [group["lr"] / LR for group in optimizer.param_groups]
    trained = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    tokens, mask = rows()
    found: list[Step] = []
    for epoch in range(EPOCHS):
        order = torch.randperm(len(RECORDS), generator=torch.Generator().manual_seed(1234 + epoch))
        for batch in order.split(BATCH):
            for group, ratio in zip(optimizer.param_groups, ratios):
                group["lr"] = learning_rate(len(found)) * ratio
            logits = model(input_ids=tokens[batch, :-1]).logits
            losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), tokens[batch, 1:], reduction="none")
            loss = (losses * mask[batch, 1:]).sum() / mask[batch, 1:].sum()
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            found.append(Step(loss.item(), norm.item()))
    return found


def test_a_fine_tuning_agrees_step_by_step(tmp_path):
    records = json.loads((GOLDEN / "sft" / "alpaca_output.json").read_text(encoding="utf-8"))
    data = tmp_path / "data.json"
    data.write_text(json.dumps([records[number] for number in RECORDS], ensure_ascii=False), encoding="utf-8")
    got = train(
        FINETUNE, tmp_path / "out", TRAIN_DATASET_PATH=data, VALID_DATASET_PATH=data, BATCH_SIZE=BATCH, LR=LR, MIN_LR=MIN_LR,
        EPOCH=EPOCHS, PAD_LEN=PAD_LEN, PRETRAIN_CHECKPOINT_PATH=convert(GOLDEN / "hf_gqa", tmp_path / "megatron"),
    )  # fmt: skip
    wanted = reference()
    assert len(got) == len(wanted) == STEPS
    assert wanted[-1].loss < wanted[0].loss - 0.5, "the reference itself must learn, or agreement says little"
    for step, (ours, theirs) in enumerate(zip(got, wanted), start=1):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-4), f"loss of step {step}"
        assert ours.grad_norm == pytest.approx(theirs.grad_norm, rel=1e-3), f"gradient norm of step {step}"
