"""Fine-tuning on several files: each validation file's loss, and the total, against transformers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_patch.arguments.training import ARGUMENTS, read
from megatron_patch.data.finetune import finetune_run_data
from megatron_patch.train.log import RunLog
from megatron_patch.train.loop import run, start_state
from megatron_patch.train.setup import build_state
from tests.launching import FINETUNE_ARGUMENTS, GOLDEN, scalars

SAMPLES = json.loads((GOLDEN / "sft" / "alpaca_output.json").read_text(encoding="utf-8"))
# Records that the original encodes rightly (golden/sft), by the file that they are in.
FILES = {"en/valid": (0, 1, 2, 3), "zh/valid": (7, 8)}


def wanted() -> dict[str, float]:
    """Tag → loss of transformers on the original's own ids and masks; the total is over the learnt tokens of both."""
    original = np.load(GOLDEN / "sft" / "finetune_pad80.npz")
    model = AutoModelForCausalLM.from_pretrained(GOLDEN / "hf_mha", dtype=torch.float32)
    sums = {}
    for name, numbers in FILES.items():
        ids, mask = (torch.from_numpy(original[key])[list(numbers)].long() for key in ("input_ids", "loss_mask"))
        with torch.no_grad():
            logits = model(ids.masked_fill(ids == 800, 0)[:, :-1]).logits.transpose(1, 2)
        losses = torch.nn.functional.cross_entropy(logits, ids[:, 1:].clamp(max=799), reduction="none")
        sums[f"/{name}"] = torch.stack([(losses * mask[:, 1:]).sum(), mask[:, 1:].sum()])
    sums[""] = torch.stack(list(sums.values())).sum(0)
    return {f"lm loss validation{name}": (loss / tokens).item() for name, (loss, tokens) in sums.items()}


def test_each_validation_file_has_its_own_loss_and_the_total_is_over_all_tokens(alone, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("GPUS_PER_NODE", "1")
    paths = []
    for name, numbers in FILES.items():
        path = tmp_path / f"{name}.json"
        path.parent.mkdir()
        path.write_text(json.dumps([SAMPLES[number] for number in numbers], ensure_ascii=False), encoding="utf-8")
        paths.append(str(path))
    values = {
        **FINETUNE_ARGUMENTS, "TRAIN_DATASET_PATH": f"1 {paths[0]} 2 {paths[1]}", "VALID_DATASET_PATH": ",".join(paths), "LR": 0,
        "MIN_LR": 0, "EPOCH": 1, "OUTPUT_BASEPATH": tmp_path, "BATCH_SIZE": 3,
        "PRETRAIN_CHECKPOINT_PATH": GOLDEN / "megatron_2023/september/mha_tp1_pp1",
    }  # fmt: skip
    config = read("finetune", [f"{ARGUMENTS['finetune'][name].flag}={value}" for name, value in values.items()]).config
    log = RunLog(config, active=True)
    data = finetune_run_data(config, alone, log.line)
    state = build_state(config, alone, log, data.train_iters)
    start_state(state, log)
    run(state, data, log)
    log.close()
    state.close()
    for tag, loss in wanted().items():
        assert scalars(tmp_path, tag) == {2: pytest.approx(loss, rel=1e-5)}, tag
    said = capsys.readouterr().out
    assert f"{paths[1]}: 4 of an epoch's 6 samples, 2 passes over its 2" in said
    lines = [line.partition(" | ")[0].strip() for line in said.splitlines() if " validation loss at " in line]
    assert lines == [f"validation loss at iteration 2{on}" for on in (" on en/valid", " on zh/valid", "")]
