"""A plan takes what the training scripts take, refuses what they refuse, and offers nothing that they refuse."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import pytest

from megatron_patch.arguments.gpus import EMULATION
from megatron_patch.arguments.plan_list import PLAN
from megatron_patch.llama.model_config import LLAMA_SIZES, to_hf_config
from megatron_patch.plan.fitting import GPUS, largest_micro_batch, what_would_fit
from tests.arguments.advice import Command, right_commands
from tests.plan.test_memory import SINGLE, shape

SHARED = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "seq_length", "precision", "micro_batch_size",
          "global_batch_size", "sequence_parallel", "extra_vocab_size", "fp8_layers", "allow_longer_sequences")  # fmt: skip


@pytest.fixture
def both(tmp_path, monkeypatch):
    """(the findings of a plan, those of the training script) for the same tiny run on four GPUs."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("GPUS_PER_NODE", "4")
    monkeypatch.setenv(EMULATION, "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    run = right_commands(tmp_path)["pretrain on four"].changed(train_tokens=str(10**8), warmup_tokens="0")

    def findings(**given):
        model = given.pop("model", "tiny")
        values = {"micro_batch_size": "1", "global_batch_size": "16", "seq_length": "64"} | {k: str(v) for k, v in given.items()}
        assert set(values) <= set(SHARED)
        trained = run.changed(**values, model_size=model)
        planned = Command(PLAN, {"model": model, "gpu": "h200", "gpus": "4"} | {k: trained.values[k] for k in SHARED
                                                                             if k in trained.values})  # fmt: skip
        return planned.findings(), trained.findings()

    return findings


LONG = {"seq_length": 2064}  # tiny has 2048 positions
CASES = [
    *({"tensor_model_parallel_size": tp, "sequence_parallel": sp, "precision": pr, "seq_length": length}
      for tp, sp, pr, length in itertools.product((1, 2), ("true", "false"), ("bf16", "fp8"), (2048, 1000, 1001, 1008))),
    LONG, {**LONG, "allow_longer_sequences": "true"}, {**LONG, "seq_length": 2047}, {"seq_length": 8191},
    {"precision": "fp8", "fp8_layers": 1}, {"precision": "fp8", "fp8_layers": 2},
    {"precision": "fp8", "seq_length": 1000, "micro_batch_size": 2},
    {"precision": "fp8", "seq_length": 1000, "micro_batch_size": 4},
    {"pipeline_model_parallel_size": 3}, {"tensor_model_parallel_size": 4}, {"global_batch_size": 6},
    {"micro_batch_size": 3}, {"extra_vocab_size": 3},
]  # fmt: skip


def test_both_take_and_refuse_the_same_and_say_the_same_of_lengths(both):
    taken = 0
    for case in CASES:
        planned, trained = both(**case)
        assert bool(planned) == bool(trained), (case, planned, trained)
        taken += not planned
        lengths = [one.problem for one in trained if one.label.endswith("SEQ_LEN")]
        assert [one.problem for one in planned if one.label == "--seq-length"] == lengths, case
    assert 15 < taken < len(CASES) - 15


def test_widths_that_fp8_does_not_take_are_refused_at_that_tp(tmp_path):
    """176 rows of the feed-forward layer over two GPUs are 88, no multiple of 16."""
    model = replace(LLAMA_SIZES["tiny"], ffn_hidden_size=176)
    (tmp_path / "config.json").write_text(json.dumps(to_hf_config(model, dtype="bfloat16")))
    for tp, problems in ((1, []), (2, ["--precision"])):
        planned = Command(PLAN, {"model": str(tmp_path), "gpu": "h200", "gpus": "4", "precision": "fp8",
                                 "tensor_model_parallel_size": str(tp)}).findings()  # fmt: skip
        assert [one.label for one in planned] == problems


def test_nothing_is_offered_that_the_scripts_refuse():
    """70B on eight H200 at an odd length: only TP 8 makes it fit, and there SP cannot be true."""
    odd = shape(8, "70b", (1, 1), {"sample_length": 2047, **SINGLE}, 64)
    offers = " ".join(what_would_fit(odd, GPUS["h200"].memory))
    assert "TP 8 with SP false" in offers and "SP true" not in offers
    fp8 = shape(8, "70b", (1, 1), {"sample_length": 2056, "precision": "fp8", "micro_batch_size": 2, **SINGLE}, 64)
    assert not any("TP" in offer for offer in what_would_fit(fp8, GPUS["h200"].memory))
    fp8 = shape(1, "7b", (1, 1), {"sample_length": 8, "precision": "fp8", "micro_batch_size": 2, **SINGLE}, 6)
    assert largest_micro_batch(fp8, GPUS["h200"].memory) == 6
    assert largest_micro_batch(replace(fp8, micro_batches=1, micro_batch_size=2), GPUS["h200"].memory) == 2
    assert largest_micro_batch(replace(fp8, micro_batches=7, micro_batch_size=2), GPUS["h200"].memory) == 14


def test_another_sp_is_said():
    """Without SP more is kept of each layer, so an offer that counts with it must name it."""
    given = shape(8, "70b", (8, 1), {"sequence_parallel": False, "sample_length": 4096, **SINGLE}, 32)
    assert what_would_fit(given, GPUS["h200"].memory) == ["SP true and AC full"]
