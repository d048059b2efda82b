"""Training on a GPU through the documented script, NCCL and all: run by `make gpu`."""

from __future__ import annotations

import math

import pytest
import torch

from tests.launching import GOLDEN, PRETRAIN, convert, scalars, train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
CORPUS = GOLDEN / "data" / "corpus_text_document"


def tiny(output, *flags, **changed):
    """Ten steps of the tiny model, four micro-batches each."""
    defaults = dict(MODEL_SIZE="tiny", DATASET_PATH=CORPUS, SEQ_LEN=64, PAD_LEN=64, TRAIN_TOKENS=10 * 4 * 64, WARMUP_TOKENS=0)
    return train(PRETRAIN, output, *flags, **{**defaults, "FL": "true", "PR": "bf16", "DO": "true", **changed})


def console(output):
    (log,) = (output / "log").glob("*/train.log")
    return log.read_text()


def test_graphs_change_no_digit(tmp_path):
    """Graphs launch the same kernels as Python does, so no digit changes.

    Attention is unfused: flash-attn's backward adds up in the order in which its blocks happen to end.
    """
    graphs = tiny(tmp_path / "graphs", "--pair-micro-batches", "false", FL="false", AC="none")
    assert graphs == tiny(tmp_path / "launched", "--cuda-graphs", "false", FL="false", AC="none")


def test_graphs_of_fused_attention_learn_the_same(tmp_path):
    """Equal up to the order in which sums are made."""
    graphs = tiny(tmp_path / "graphs", "--pair-micro-batches", "false")
    launched = tiny(tmp_path / "launched", "--cuda-graphs", "false")
    assert [step.loss for step in graphs] == pytest.approx([step.loss for step in launched], rel=1e-3)


def test_pairs_of_micro_batches_change_no_curve(tmp_path):
    pairs = tiny(tmp_path / "pairs", PR="fp32", FL="false", AC="none")
    single = tiny(tmp_path / "single", "--pair-micro-batches", "false", PR="fp32", FL="false", AC="none")
    said = "two micro-batches go through the model in one pass"
    assert said in console(tmp_path / "pairs") and said not in console(tmp_path / "single")
    assert [step.loss for step in pairs] == pytest.approx([step.loss for step in single], rel=1e-5)
    assert [step.grad_norm for step in pairs] == pytest.approx([step.grad_norm for step in single], rel=1e-4)


@pytest.mark.parametrize("recompute", ["sel", "none"])
def test_losses_after_a_stop_are_the_same_bits(tmp_path, recompute):
    """A checkpoint holds what the last update made, though the host did not wait for it.

    Without recomputation the run has graphs of pairs, and the process that goes on finds that pairs fit as well.
    """
    unfused = {"FL": "false", "AC": recompute}
    whole = tiny(tmp_path / "whole", **unfused)
    first = tiny(tmp_path / "parts", "--exit-interval", 5, **unfused)
    assert len(whole) == 10 and first == whole[:5]
    assert tiny(tmp_path / "parts", **unfused) == whole


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("fused", ["true", "false"])
def test_precisions_and_attentions_learn_alike(tmp_path, precision, fused):
    wanted = tiny(tmp_path / "fp32", PR="fp32", FL="false")
    got = tiny(tmp_path / "got", "--initial-loss-scale", 1024, PR=precision, FL=fused)
    assert len(got) == len(wanted) == 10
    assert [step.loss for step in got] == pytest.approx([step.loss for step in wanted], rel=1e-2)
    assert all(math.isfinite(step.grad_norm) for step in got)


def test_profile_is_written(tmp_path):
    tiny(tmp_path, "--profile", "true", "--profile-step-start", 4, "--profile-step-end", 6)
    traces = list((tmp_path / "tensorboard").glob("*_profile/*.pt.trace.json*"))
    assert traces and any("nvjet" in trace.read_text() or "gemm" in trace.read_text() for trace in traces)


two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
LAYOUTS = {
    "TP2 with SP": dict(TP=2, SP="true"),
    "TP2": dict(TP=2),
    "PP2": dict(PP=2),
    "DP2": dict(),
    "DP2 without DO": dict(DO="false"),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Converted weights are the same for every layout; random ones are not."""
    return convert(GOLDEN / "hf_mha", tmp_path_factory.mktemp("megatron") / "mha")


four_gpus = pytest.mark.skipif(torch.cuda.device_count() < 4, reason="needs four GPUs")
FOUR = {
    "TP2 DP2 with SP": dict(TP=2, SP="true"),
    "TP4 with SP": dict(TP=4, SP="true"),
    "PP2 DP2": dict(PP=2),
    "PP4": dict(PP=4),
    "TP2 PP2 with SP": dict(TP=2, PP=2, SP="true"),
}


@two_gpus
@pytest.mark.parametrize("pairs", ["true", "false"])
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_two_gpus_learn_what_one_learns(tmp_path, gpus, weights, layout, pairs):
    """Steps run in graphs, with NCCL's kernels recorded in them."""
    learn_what_one_learns(2, tmp_path, gpus, weights, layout, "--pair-micro-batches", pairs)


@four_gpus
@pytest.mark.parametrize("layout", FOUR.values(), ids=FOUR)
def test_four_gpus_learn_what_one_learns(tmp_path, gpus, weights, layout):
    learn_what_one_learns(4, tmp_path, gpus, weights, layout)


@two_gpus
@pytest.mark.parametrize("recompute", ["full", "sel"])
def test_recomputation_in_graphs_learns_what_one_learns(tmp_path, gpus, weights, recompute):
    learn_what_one_learns(2, tmp_path, gpus, weights, dict(PP=2, AC=recompute))


def learn_what_one_learns(number, tmp_path, gpus, weights, layout, *flags):
    common = dict(PR="fp32", FL="false", AC="none", MODEL_SIZE="auto", PRETRAIN_CHECKPOINT_PATH=weights)
    # Twelve samples: three pairs for each of two replicas, and enough micro-batches for four stages.
    common |= dict(GLOBAL_BATCH_SIZE=12, TRAIN_TOKENS=10 * 12 * 64)
    one = tiny(tmp_path / "one", "--cuda-graphs", "false", **common)
    gpus(number)
    several = tiny(tmp_path / "several", *flags, **{**common, **layout})
    assert "CUDA graphs: yes\n" in console(tmp_path / "several")
    assert [step.loss for step in several] == pytest.approx([step.loss for step in one], rel=1e-5)
    assert [step.grad_norm for step in several] == pytest.approx([step.grad_norm for step in one], rel=1e-4)


@two_gpus
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_two_gpus_go_on_with_the_same_bits(tmp_path, gpus, layout):
    """With evaluations between the steps; their passes are launched and not replayed."""
    go_on_with_the_same_bits(2, tmp_path, gpus, layout)


@four_gpus
@pytest.mark.parametrize("name", [name for name in FOUR if "TP4" not in name])  # the tiny model has two KV groups only
def test_four_gpus_go_on_with_the_same_bits(tmp_path, gpus, name):
    layout = FOUR[name]
    go_on_with_the_same_bits(4, tmp_path, gpus, layout)


def go_on_with_the_same_bits(number, tmp_path, gpus, layout):
    gpus(number)
    unfused, evaluating = dict(FL="false", AC="none", **layout), ("--eval-interval", 3, "--eval-iters", 1)
    whole = tiny(tmp_path / "whole", *evaluating, **unfused)
    first = tiny(tmp_path / "parts", *evaluating, "--exit-interval", 5, **unfused)
    assert len(whole) == 10 and first == whole[:5]
    assert tiny(tmp_path / "parts", *evaluating, **unfused) == whole
    assert scalars(tmp_path / "parts", "lm loss validation") == scalars(tmp_path / "whole", "lm loss validation") != {}


@two_gpus
@pytest.mark.parametrize("layout", [LAYOUTS["TP2 with SP"], LAYOUTS["DP2"]], ids=["TP2 with SP", "DP2"])
def test_two_gpus_learn_alike_with_fused_attention(tmp_path, gpus, weights, layout):
    common = dict(MODEL_SIZE="auto", PRETRAIN_CHECKPOINT_PATH=weights)
    wanted = tiny(tmp_path / "one", **common)
    gpus(2)
    got = tiny(tmp_path / "two", **common, **layout)
    assert [step.loss for step in got] == pytest.approx([step.loss for step in wanted], rel=1e-2)
