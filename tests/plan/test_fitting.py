"""What is offered instead of a run that does not fit, what a run's start says, and traffic as it was counted."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from megatron_patch.errors import UserError
from megatron_patch.plan.fitting import GPUS, fits, largest_micro_batch, what_would_fit, with_passes_that_fit
from megatron_patch.plan.memory import fullest_stage
from megatron_patch.plan.run_start import expected_memory
from megatron_patch.plan.traffic import traffic
from tests.launching import GOLDEN, PRETRAIN, PRETRAIN_ARGUMENTS, run
from tests.plan.test_memory import SINGLE, shape

H100, H200 = GPUS["h100"].memory, GPUS["h200"].memory


def test_one_change_is_offered_where_one_is_enough():
    """7B with DO false on eight H100: 107.8 GB of state on each; ZeRO alone brings it to 53."""
    given = shape(8, "7b", (1, 1), {"use_distributed_optimizer": False, **SINGLE}, 64)
    assert not fits(given, H100)
    offers = what_would_fit(given, H100)
    assert offers[0] == "DO true" and all(" and " not in offer for offer in offers)


def test_what_is_offered_fits_and_what_is_refused_does_not():
    """70B on eight H200: 68.98 billion parameters of 16 bytes without ZeRO are a TB; TP 8 leaves 128 GiB on each."""
    given = shape(8, "70b", (1, 1), SINGLE, 64)
    with pytest.raises(UserError, match=r"takes .* GiB of a GPU's memory, and there are 139\.8: write "):
        expected_memory(given, H200)
    assert "TP 8 with SP true" in " ".join(what_would_fit(given, H200))
    assert what_would_fit(given, GPUS["rtx4090"].memory) == []


def test_passes_are_as_large_as_they_fit_and_pay():
    """Measured: pairs in fp16 took 129.7 GiB on an H200; at DP 4 single micro-batches fit an H100, pairs do not."""
    fp16 = shape(1, "7b", (1, 1), {"precision": "fp16", **SINGLE}, 8)
    assert with_passes_that_fit(fp16, H200).in_a_pass == 2
    four = shape(4, "7b", (1, 1), {"precision": "fp16", **SINGLE}, 32)
    two = replace(four, micro_batch_size=2, micro_batches=4)
    assert fits(four, H100) and with_passes_that_fit(two, H100).in_a_pass == 1
    assert with_passes_that_fit(four, H200).in_a_pass == 4 and with_passes_that_fit(two, H200).in_a_pass == 2
    assert with_passes_that_fit(replace(four, micro_batches=6), H200).in_a_pass == 2


def test_the_largest_micro_batch_fits_and_the_next_does_not():
    given = shape(1, "7b", (1, 1), SINGLE, 8)
    size = largest_micro_batch(given, H200)
    assert fits(replace(given, micro_batch_size=size, micro_batches=8 // size), H200)
    assert size == 8 or not fits(replace(given, micro_batch_size=2 * size, micro_batches=8 // (2 * size)), H200)


def test_the_fullest_stage_of_a_pipeline_is_the_first():
    """It holds the activations of as many micro-batches as there are stages; the last one holds one."""
    number, memory = fullest_stage(shape(4, "7b", (1, 4), SINGLE, 32))
    assert number == 0 and memory.activations == pytest.approx(4 * 2.02 * 2**30, rel=0.01)


def test_traffic_inside_layers_is_what_a_profile_counted():
    """A step of 7B at TP 4 with SP, 32 samples in pairs: 3,120 all-gathers and 2,080 reduce-scatters were counted.

    Each moves a pair's sequence, [2048, 2, 4096] in bf16, of which a ring sends three quarters. Three gathers and two
    sums of each pass are the embedding's and the head's, which the plan leaves out.
    """
    counted = (3120 + 2080) * 2048 * 2 * 4096 * 2 * 3 / 4
    assert traffic(shape(4, "7b", (4, 1), {}, 32)).tensor == pytest.approx(counted, rel=0.02)


def test_a_dry_run_says_what_a_run_would_do_and_starts_nothing(tmp_path):
    values = {**PRETRAIN_ARGUMENTS, "MODEL_SIZE": "tiny", "TP": 2, "DATASET_PATH": GOLDEN / "data" / "corpus_text_document"}
    values["OUTPUT_BASEPATH"] = tmp_path / "out"
    done = run(PRETRAIN, *values.values(), "--dry-run", "true", processes=4)
    assert done.returncode == 0, done.stdout
    assert "4 processes: TP 2, PP 1, data parallel 2." in done.stdout
    assert "20 iterations of 4 samples of 32 tokens, 128 tokens each; 2 micro-batches of 1 for each replica." in done.stdout
    assert "GPU memory, expected" in done.stdout
    config = json.loads(done.stdout[done.stdout.index("\n{") :])
    assert config["tensor_model_parallel_size"] == 2 and config["train_iters"] == 20
    assert not (tmp_path / "out").exists()
