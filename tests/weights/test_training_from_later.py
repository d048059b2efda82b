"""Training directly from the original's checkpoints, at another TP and PP than theirs.

A run at a learning rate of 0 saves what it loaded; converted back, that is the folder everything came from.
"""

from __future__ import annotations

import json

import torch

from megatron_patch.arguments.conversion import Conversion
from megatron_patch.arguments.training import ARGUMENTS, read
from megatron_patch.conversion.convert import convert
from tests.launching import FINETUNE, FINETUNE_ARGUMENTS, GOLDEN, PRETRAIN, PRETRAIN_ARGUMENTS, run_forked, train
from tests.weights.models import assert_same, read_hf
from tests.weights.original import Written, write_original

CORPUS = GOLDEN / "data" / "corpus_text_document"
ALPACA = GOLDEN / "sft" / "alpaca_output.json"
STILL = dict(LR="0", MIN_LR="0", PR="fp16")


def back(output, target):
    """The run's last checkpoint as a Hugging Face folder's tensors."""
    (root,) = (output / "checkpoint").iterdir()
    convert(Conversion(root, target, to_hf=True))
    return root, read_hf(target)


def test_a_trained_checkpoint(later, tmp_path):
    """Saved at TP 2 and PP 2; the number of its iteration is not the new run's."""
    data = dict(TRAIN_TOKENS=2 * 4 * 32, WARMUP_TOKENS=0, DATASET_PATH=CORPUS)
    source = later / "trained/90ce090_gqa8_tp2_pp2"
    train(PRETRAIN, tmp_path / "out", processes=2, PRETRAIN_CHECKPOINT_PATH=source, TP=1, PP=2, **STILL, **data)
    assert_same(back(tmp_path / "out", tmp_path / "hf")[1], read_hf(later / "truth/hf_gqa8"))


def test_all_q_first_and_extra_rows(later, tmp_path, monkeypatch):
    """Fine-tuning, with the flag; EXTRA_VOCAB_SIZE 0 keeps the rows that the checkpoint has."""
    hf = later / "truth/hf_gqa8"
    rows = torch.randn(8, 64, generator=torch.Generator().manual_seed(3))
    source = write_original(tmp_path / "source", hf, read_hf(hf), Written("2023-10-18", tp=4, pp=2, extra=rows))
    data = dict(TRAIN_DATASET_PATH=ALPACA, VALID_DATASET_PATH=ALPACA, EPOCH=1)
    flags = ("--gqa-layout", "all-q-first")
    train(FINETUNE, tmp_path / "out", *flags, processes=2, PRETRAIN_CHECKPOINT_PATH=source, TP=2, PP=1, **STILL, **data)
    (log,) = (tmp_path / "out/log").glob("*/train.log")
    assert "are read as all of a rank's q, then k and v" in log.read_text()
    root, got = back(tmp_path / "out", tmp_path / "hf")
    wanted = read_hf(hf)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        wanted[name] = torch.cat([wanted[name], rows.half()])
    assert_same(got, wanted)
    (iteration,) = root.glob("iter_*")
    assert json.loads((iteration / "model.json").read_text())["extra_vocab_size"] == 8
    assert json.loads((tmp_path / "hf/config.json").read_text())["vocab_size"] == 808
    assert json.loads((tmp_path / "hf/megatron_patch.json").read_text()) == {"format": 1, "template": "alpaca"}
    # The same command once what it began with has gone: the run's own checkpoints have these rows.
    source.rename(tmp_path / "gone")
    values = FINETUNE_ARGUMENTS | STILL | data
    values |= dict(TP=2, PRETRAIN_CHECKPOINT_PATH=source, OUTPUT_BASEPATH=tmp_path / "out")
    argv = [f"{argument.flag}={values[name]}" for name, argument in ARGUMENTS["finetune"].items()]
    monkeypatch.setenv("GPUS_PER_NODE", "2")
    assert read("finetune", argv).config.extra_vocab_size == 8


def test_contradictions_are_found_before_a_process_starts(later, tmp_path):
    hf = later / "truth/hf_gqa8"
    enlarged = write_original(tmp_path / "source", hf, read_hf(hf), Written("trained", tp=2, extra=torch.ones(8, 64)))
    values = PRETRAIN_ARGUMENTS | dict(DATASET_PATH=CORPUS, OUTPUT_BASEPATH=tmp_path / "out")
    result = run_forked(PRETRAIN, *(values | dict(PRETRAIN_CHECKPOINT_PATH=enlarged, EXTRA_VOCAB_SIZE=4)).values())
    assert result.returncode == 2
    assert "has 808 rows for a vocabulary of 800, 8 of them beyond it: write 8, or 0, which keeps them" in result.stdout
    values = FINETUNE_ARGUMENTS | dict(TRAIN_DATASET_PATH=ALPACA, VALID_DATASET_PATH=ALPACA, OUTPUT_BASEPATH=tmp_path / "out")
    result = run_forked(FINETUNE, *(values | dict(MODEL_SIZE="tiny")).values(), "--gqa-layout", "all-q-first")
    assert result.returncode == 2
    assert "--gqa-layout: got 'all-q-first'; it is for a PRETRAIN_CHECKPOINT_PATH of 2023" in result.stdout
