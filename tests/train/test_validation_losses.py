"""Validation losses of fine-tuning: those of several files against transformers; the best one, and when a run ends."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from megatron_patch.errors import UserError
from megatron_patch.folders.tracker import BEST_TRACKER
from megatron_patch.inspection.checkpoint import describe_checkpoint
from megatron_patch.train import evaluation
from tests.launching import GOLDEN, scalars
from tests.train.in_process import finetune

SAMPLES = json.loads((GOLDEN / "sft" / "alpaca_output.json").read_text(encoding="utf-8"))
MODEL = GOLDEN / "megatron_2023/september/mha_tp1_pp1"  # hf_mha
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


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("GPUS_PER_NODE", "1")


def written(path: Path, *numbers: int) -> Path:
    """A file of these records."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps([SAMPLES[number] for number in numbers], ensure_ascii=False), encoding="utf-8")
    return path


def test_each_validation_file_has_its_own_loss_and_the_total_is_over_all_tokens(alone, tmp_path, capsys):
    data = [written(tmp_path / f"{name}.json", *numbers) for name, numbers in FILES.items()]
    weighted, several = f"1 {data[0]} 2 {data[1]}", ",".join(map(str, data))
    files = dict(TRAIN_DATASET_PATH=weighted, VALID_DATASET_PATH=several, PRETRAIN_CHECKPOINT_PATH=MODEL)
    finetune(alone, tmp_path / "out", **files, LR=0, MIN_LR=0, EPOCH=1, BATCH_SIZE=3)
    for tag, loss in wanted().items():
        assert scalars(tmp_path / "out", tag) == {2: pytest.approx(loss, rel=1e-5)}, tag
    said = capsys.readouterr().out
    assert f"{data[1]}: 4 of an epoch's 6 samples, 2 passes over its 2" in said
    lines = [line.partition(" | ")[0].strip() for line in said.splitlines() if " validation loss at " in line]
    assert lines == [f"validation loss at iteration 2{on}" for on in (" on en/valid", " on zh/valid", "")]


def test_patience_and_the_best_checkpoint_are_the_same_after_a_stop(alone, tmp_path, capsys):
    """The validation loss rises after three epochs of two steps. The run is stopped in the fourth."""
    a, b = written(tmp_path / "a.json", 1, 2, 3, 8), written(tmp_path / "b.json", 7, 8)
    values = dict(
        TRAIN_DATASET_PATH=f"1 {a} 2 {b}", VALID_DATASET_PATH=written(tmp_path / "valid.json", 0, 9), LR="3e-3", MIN_LR=0,
        PRETRAIN_CHECKPOINT_PATH=MODEL, EPOCH=9, BATCH_SIZE=3,
    )  # fmt: skip
    flags = ("--save-best", "--early-stopping-patience=2", "--keep-last=1")
    whole = finetune(alone, tmp_path / "whole", *flags, **values)
    losses = scalars(tmp_path / "whole", "lm loss validation")
    best = min(losses, key=losses.__getitem__)
    assert 2 < best < max(losses) == best + 4 < 18, "two epochs of two steps behind the best; the run could go on"
    first = finetune(alone, tmp_path / "parts", *flags, f"--exit-interval={best + 1}", **values)
    assert (first.iteration, first.best_iteration) == (best + 1, best)
    assert (root := Path(first.config.checkpoint_folder)) and left(root) == {best, best + 1}
    second = finetune(alone, tmp_path / "parts", *flags, **values)
    for tag in ("lm loss", "grad-norm", "lm loss validation"):
        assert scalars(tmp_path / "parts", tag) == scalars(tmp_path / "whole", tag), tag
    assert (second.iteration, second.best_loss) == (whole.iteration, whole.best_loss) == (best + 4, pytest.approx(losses[best]))
    assert left(root) == {best, best + 4} and (root / BEST_TRACKER).read_text() == str(best)
    assert f"the lowest validation loss: iteration {best}" in describe_checkpoint(root)
    capsys.readouterr()
    assert finetune(alone, tmp_path / "parts", *flags, **values).steps_here == 0
    assert "nothing is left to do: the validation loss was not below its lowest" in capsys.readouterr().out
    finetune(alone, tmp_path / "parts", "--early-stopping-patience=3", "--exit-interval=1", **values)
    assert left(root) == {best, best + 4, best + 5}, "without --keep-last all stay"


@pytest.mark.parametrize("place, calls", [("_batches", 6), ("run_schedule", 7)], ids=["behind a file", "between batches"])
def test_a_signal_in_an_evaluation_saves_first_and_the_next_start_makes_it_up(place, calls, alone, tmp_path, monkeypatch, capsys):
    """The third evaluation, after the last step, has the lowest loss. A start that makes it up is signalled as well."""
    values = dict(
        TRAIN_DATASET_PATH=written(tmp_path / "a.json", 1, 2, 3, 7, 8), PRETRAIN_CHECKPOINT_PATH=MODEL, EPOCH=3, BATCH_SIZE=3,
        VALID_DATASET_PATH=f"{written(tmp_path / 'b.json', 0, 9, 1, 2)},{written(tmp_path / 'c.json', 7)}", LR="3e-4", MIN_LR=0,
    )  # fmt: skip
    whole = finetune(alone, tmp_path / "whole", "--save-best", **values)
    losses = scalars(tmp_path / "whole", "lm loss validation")
    assert list(losses) == [2, 4, 6] and min(losses, key=losses.__getitem__) == 6
    real, handler, made = getattr(evaluation, place), signal.getsignal(signal.SIGTERM), []

    def signalled(*given, **options):
        made.append(place)
        if len(made) == calls:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*given, **options)

    monkeypatch.setattr(evaluation, place, signalled)
    try:
        first = finetune(alone, tmp_path / "parts", "--save-best", **values)
        assert (first.iteration, first.best_iteration, first.evaluations_owed) == (6, 4, 1)
        root = Path(first.config.checkpoint_folder)
        made[:] = [place] * (calls - 1)
        again = finetune(alone, tmp_path / "parts", "--save-best", **values)
        assert (again.steps_here, again.evaluations_owed) == (0, 1) and (root / BEST_TRACKER).read_text() == "4"
        assert capsys.readouterr().out.count("stopping at iteration 6 as asked; the same command goes on from here.") == 2
    finally:
        signal.signal(signal.SIGTERM, handler)
    monkeypatch.setattr(evaluation, place, real)
    last = finetune(alone, tmp_path / "parts", "--save-best", **values)
    for tag in ("lm loss validation", "lm loss validation/b", "lm loss validation/c"):
        assert scalars(tmp_path / "parts", tag) == scalars(tmp_path / "whole", tag), tag
    logs = "".join(log.read_text(encoding="utf-8") for log in tmp_path.glob("parts/log/*/train.log"))
    assert logs.count("validation loss at iteration 6 on b ") == 1, "what was done before the signal came would stand twice"
    assert (last.best_loss, last.best_iteration, last.evaluations_owed) == (whole.best_loss, 6, 0)
    assert (root / BEST_TRACKER).read_text() == "6"
    capsys.readouterr()
    finetune(alone, tmp_path / "parts", "--save-best", **values)
    assert "nothing is left to do" in (said := capsys.readouterr().out) and "is made now" not in said


def left(root: Path) -> set[int]:
    """The iterations whose checkpoints are there."""
    return {int(folder.name.removeprefix("iter_")) for folder in root.glob("iter_*")}


def test_flags_that_go_by_the_validation_loss_need_one(alone, tmp_path):
    empty = tmp_path / "empty.json"
    empty.write_text(json.dumps([{"instruction": "x", "output": ""}]))
    values = dict(TRAIN_DATASET_PATH=written(tmp_path / "a.json", 1), VALID_DATASET_PATH=empty, PRETRAIN_CHECKPOINT_PATH=MODEL)
    with pytest.raises(UserError, match="--save-best and --early-stopping-patience: there is no validation loss"):
        finetune(alone, tmp_path / "out", "--save-best", "--early-stopping-patience=1", **values)
