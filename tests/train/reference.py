"""Fine-tuning as transformers and torch's AdamW do it, on samples that the original program encoded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from tests.launching import GOLDEN

MODEL = GOLDEN / "megatron_2023/september/mha_tp1_pp1"  # has hf_mha's weights
# Records that the original encodes rightly (golden/sft): no input, an input, no such key, an answer that is cut, line
# breaks, an answer that begins with a blank.
RECORDS = (0, 1, 2, 3, 7, 8)


def write_records(path: Path) -> Path:
    """A file of RECORDS."""
    records = json.loads((GOLDEN / "sft" / "alpaca_output.json").read_text(encoding="utf-8"))
    path.write_text(json.dumps([records[number] for number in RECORDS], ensure_ascii=False), encoding="utf-8")
    return path


def batches(passes: int, size: int) -> list[torch.Tensor]:
    """The places in RECORDS of each batch, over so many passes; the order of a pass is by the seed and its number."""
    orders = [torch.randperm(len(RECORDS), generator=torch.Generator().manual_seed(1234 + number)) for number in range(passes)]
    return [batch for order in orders for batch in order.split(size)]


def losses(rates: Sequence[float], size: int) -> dict[int, float]:
    """Iteration → loss of a training of hf_mha in fp32 with these learning rates, PAD_LEN 80 and batches of `size`."""
    from transformers import AutoModelForCausalLM

    golden = np.load(GOLDEN / "sft" / "finetune_pad80.npz")
    tokens, mask = (torch.from_numpy(golden[key])[list(RECORDS)].long() for key in ("input_ids", "loss_mask"))
    tokens = tokens.masked_fill(tokens >= 800, 0)  # padding, of which nothing is learnt
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / "hf_mha", dtype=torch.float32)
    groups = [
        {"params": [one for one in model.parameters() if (one.dim() > 1) == decayed], "weight_decay": 0.1 * decayed}
        for decayed in (True, False)
    ]
    optimizer = torch.optim.AdamW(groups, lr=0, betas=(0.9, 0.95), eps=1e-8)
    found = {}
    for iteration, (rate, batch) in enumerate(zip(rates, batches(len(rates), size)), start=1):
        for group in optimizer.param_groups:
            group["lr"] = rate
        logits = model(tokens[batch, :-1]).logits.transpose(1, 2)
        each = torch.nn.functional.cross_entropy(logits, tokens[batch, 1:], reduction="none") * mask[batch, 1:]
        loss = each.sum() / mask[batch, 1:].sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        found[iteration] = loss.item()
    return found
