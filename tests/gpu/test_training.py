"""Training on a GPU through the documented script, NCCL and all: run by `make gpu`."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from megatron_patch.arguments.processes import free_port
from tests import launching
from tests.launching import FINETUNE, GOLDEN, PRETRAIN, convert, scalars, train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]
NO_FP8 = pytest.mark.skipif(
    torch.cuda.is_available() and torch.cuda.get_device_capability() < (8, 9), reason="needs FP8 tensor cores"
)
FP8 = pytest.param("fp8", marks=NO_FP8)
SAMPLES = GOLDEN / "sft" / "alpaca_output.json"
CORPUS = GOLDEN / "data" / "corpus_text_document"


def tiny(output, *flags, **changed):
    """Ten steps of the tiny model, four micro-batches each."""
    defaults = dict(MODEL_SIZE="tiny", DATASET_PATH=CORPUS, SEQ_LEN=64, PAD_LEN=64, TRAIN_TOKENS=10 * 4 * 64, WARMUP_TOKENS=0)
    return train(PRETRAIN, output, *flags, **{**defaults, "FL": "true", "PR": "bf16", "DO": "true", **changed})


def console(output):
    (log,) = (output / "log").glob("*/train.log")
    return log.read_text()


DROPS = ("--lora-rank", 8, "--lora-dropout", 0.2, "--lora-plus-ratio", 4)


@pytest.mark.parametrize("flags", [(), DROPS], ids=["all weights", "LoRA with dropout"])
@pytest.mark.parametrize("precision", ["bf16", FP8])
def test_graphs_change_no_digit(tmp_path, precision, flags):
    """Graphs launch the same kernels as Python does, so no digit changes.

    Attention is unfused: flash-attn's backward adds up in the order in which its blocks happen to end.
    """
    unfused = {"PR": precision, "FL": "false", "AC": "none"}
    graphs = tiny(tmp_path / "graphs", "--pair-micro-batches", "false", *flags, **unfused)
    assert graphs == tiny(tmp_path / "launched", "--cuda-graphs", "false", *flags, **unfused)


def test_graphs_of_fused_attention_learn_the_same(tmp_path):
    """Equal up to the order in which sums are made."""
    graphs = tiny(tmp_path / "graphs", "--pair-micro-batches", "false")
    launched = tiny(tmp_path / "launched", "--cuda-graphs", "false")
    assert [step.loss for step in graphs] == pytest.approx([step.loss for step in launched], rel=1e-3)


def test_pairs_of_micro_batches_change_no_curve(tmp_path):
    pairs = tiny(tmp_path / "pairs", PR="fp32", FL="false", AC="none")
    single = tiny(tmp_path / "single", "--pair-micro-batches", "false", PR="fp32", FL="false", AC="none")
    said = "4 micro-batches go through the model in one pass"
    assert said in console(tmp_path / "pairs") and said not in console(tmp_path / "single")
    assert [step.loss for step in pairs] == pytest.approx([step.loss for step in single], rel=1e-5)
    assert [step.grad_norm for step in pairs] == pytest.approx([step.grad_norm for step in single], rel=1e-4)


@pytest.mark.parametrize("recompute, precision", [("sel", "bf16"), ("none", "bf16"), pytest.param("none", "fp8", marks=NO_FP8)])
def test_losses_after_a_stop_are_the_same_bits(tmp_path, recompute, precision):
    """A checkpoint holds what the last update made, though the host did not wait for it.

    Without recomputation the run has graphs of pairs, and the process that goes on finds that pairs fit as well.
    """
    unfused = {"FL": "false", "AC": recompute, "PR": precision}
    whole = tiny(tmp_path / "whole", **unfused)
    first = tiny(tmp_path / "parts", "--exit-interval", 5, **unfused)
    assert len(whole) == 10 and first == whole[:5]
    assert tiny(tmp_path / "parts", **unfused) == whole


@pytest.mark.parametrize("precision", ["bf16", "fp16", FP8])
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


def test_a_run_that_waits_for_its_launches_says_so(tmp_path):
    """The tiny model's kernels take a few microseconds each."""
    tiny(tmp_path, "--cuda-graphs", "false")
    (line,) = (line for line in console(tmp_path).splitlines() if "the GPU is idle for" in line)
    assert line.endswith("What helps: --cuda-graphs true; BATCH_SIZE above 1, whose kernels are longer.")


two_gpus = pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
LAYOUTS = {
    "TP2 with SP": dict(TP=2, SP="true"),
    "TP2": dict(TP=2),
    "PP2": dict(PP=2),
    "DP2": dict(),
    "DP2 without DO": dict(DO="false"),
}


@pytest.fixture(scope="session")
def weights(shared):
    """The same for every layout, which random ones are not."""
    folder, lock = shared
    with lock:
        if not (folder / "mha").exists():
            convert(GOLDEN / "hf_mha", folder / "mha")
    return folder / "mha"


COMMON = dict(PR="fp32", FL="false", AC="none", MODEL_SIZE="auto")
# Twelve samples: three pairs for each of two replicas, and enough micro-batches for four stages.
COMMON |= dict(GLOBAL_BATCH_SIZE=12, TRAIN_TOKENS=10 * 12 * 64)


@pytest.fixture
def one(shared, weights, gpus):
    """Losses and gradients' norms of the ten steps on one GPU, without graphs."""
    return learnt_once(shared, "one", PRETRAIN_CHECKPOINT_PATH=weights, **COMMON)


def learnt_once(shared, name, **given):
    folder, lock = shared
    with lock:
        if not (folder / f"{name}.json").exists():
            steps = tiny(folder / name, "--cuda-graphs", "false", **given)
            (folder / f"{name}.json").write_text(json.dumps([[step.loss for step in steps], [step.grad_norm for step in steps]]))
    return json.loads((folder / f"{name}.json").read_text())


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
def test_two_gpus_learn_what_one_learns(tmp_path, gpus, weights, one, layout, pairs):
    """In graphs, NCCL's kernels among them."""
    learn_what_one_learns(2, tmp_path, gpus, weights, one, layout, "--pair-micro-batches", pairs)


@two_gpus
def test_lora_over_two_gpus_learns_what_one_learns(tmp_path, gpus, weights):
    """In graphs, where the adapters' gradients are made beside the sums of the input's."""
    given = {**COMMON, "PRETRAIN_CHECKPOINT_PATH": weights}
    alone = tiny(tmp_path / "one", "--lora-rank", 8, "--cuda-graphs", "false", **given)
    gpus(2)
    several = tiny(tmp_path / "several", "--lora-rank", 8, **given, TP=2, SP="true")
    said = console(tmp_path / "several")
    assert "CUDA graphs: yes\n" in said and "copy engines" in said
    assert [step.loss for step in several] == pytest.approx([step.loss for step in alone], rel=1e-5)
    assert [step.grad_norm for step in several] == pytest.approx([step.grad_norm for step in alone], rel=1e-4)


@two_gpus
def test_what_two_gpus_exchange_is_not_written_meanwhile(gpus):
    gpus(2)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m"]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    words = [*torchrun, "tests.gpu.exchange_worker"]
    launching.succeed(subprocess.run(words, env=launching.environment(), cwd=launching.ROOT, **both))


@four_gpus
@pytest.mark.parametrize("layout", FOUR.values(), ids=FOUR)
def test_four_gpus_learn_what_one_learns(tmp_path, gpus, weights, one, layout):
    learn_what_one_learns(4, tmp_path, gpus, weights, one, layout)


@two_gpus
@pytest.mark.parametrize("recompute", ["full", "sel"])
def test_recomputation_in_graphs_learns_what_one_learns(tmp_path, gpus, weights, one, recompute):
    learn_what_one_learns(2, tmp_path, gpus, weights, one, dict(PP=2, AC=recompute))


@four_gpus
@pytest.mark.parametrize("layout", [FOUR["TP2 DP2 with SP"]], ids=["TP2 DP2 with SP"])
def test_without_copy_engines_four_gpus_learn_the_same(tmp_path, gpus, weights, one, layout):
    learn_what_one_learns(4, tmp_path, gpus, weights, one, layout, copies="false")


@two_gpus
@pytest.mark.parametrize("layout", [dict(), dict(PP=2)], ids=["DP2 across", "PP2 across"])
def test_two_nodes_learn_what_one_learns(tmp_path, gpus, weights, one, layout):
    nodes_learn_what_one_learns(1, tmp_path, gpus, weights, one, layout)


@four_gpus
@pytest.mark.parametrize("layout", [dict(TP=2, SP="true"), dict(PP=2)], ids=["TP2 in each", "PP2 across"])
def test_two_nodes_of_two_gpus_learn_what_one_learns(tmp_path, gpus, weights, one, layout):
    nodes_learn_what_one_learns(2, tmp_path, gpus, weights, one, layout)


def nodes_learn_what_one_learns(each, tmp_path, gpus, weights, one, layout):
    """NCCL takes two halves of this machine for two machines, and communicates by sockets, in graphs too."""
    gpus(2 * each)
    visible, port = launching.HIDDEN["CUDA_VISIBLE_DEVICES"].split(","), free_port()

    def node(rank):
        job = dict(WORLD_SIZE=2, RANK=rank, MASTER_ADDR="127.0.0.1", MASTER_PORT=port, NPROC_PER_NODE=each)
        job |= dict(CUDA_VISIBLE_DEVICES=",".join(visible[each * rank :][:each]), NCCL_HOSTID=f"node{rank}")
        wanted = {**COMMON, "PRETRAIN_CHECKPOINT_PATH": weights, **layout}
        return tiny(tmp_path / "several", ENV="dlc", job=job, **wanted)

    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(node, range(2)))
    losses, norms = one
    assert "CUDA graphs: yes\n" in console(tmp_path / "several")
    for steps in found:
        assert [step.loss for step in steps] == pytest.approx(losses, rel=1e-5)
        assert [step.grad_norm for step in steps] == pytest.approx(norms, rel=1e-4)


def test_packed_samples_are_recorded(tmp_path):
    """Graphs learn what launched kernels learn: the same samples in the same sequences."""

    def finetuned(name, *flags):
        paths = dict(TRAIN_DATASET_PATH=SAMPLES, VALID_DATASET_PATH=SAMPLES, PRETRAIN_CHECKPOINT_PATH="none")
        given = dict(MODEL_SIZE="tiny", PR="bf16", FL="true", AC="none", SEQ_LEN=256, PAD_LEN=256, EPOCH=4, **paths)
        return train(FINETUNE, tmp_path / name, "--packing", "true", "--tokenizer-path", GOLDEN / "hf_mha", *flags, **given)

    graphs, launched = finetuned("graphs"), finetuned("launched", "--cuda-graphs", "false")
    assert "CUDA graphs: yes\n" in console(tmp_path / "graphs") and len(graphs) >= 4
    assert [step.loss for step in graphs] == pytest.approx([step.loss for step in launched], rel=1e-3)


def learn_what_one_learns(number, tmp_path, gpus, weights, one, layout, *flags, copies="true"):
    gpus(number)
    several = tiny(
        tmp_path / "several", *flags, "--peer-copies", copies, **{**COMMON, "PRETRAIN_CHECKPOINT_PATH": weights, **layout}
    )
    said, (losses, norms) = console(tmp_path / "several"), one
    assert "CUDA graphs: yes\n" in said
    replicas = number // (layout.get("TP", 1) * layout.get("PP", 1))
    communicates = layout.get("SP") == "true" or (replicas > 1 and layout.get("DO") != "false")
    assert ("copy engines" in said) == (communicates and copies == "true")
    assert "NCCL (" not in said
    assert [step.loss for step in several] == pytest.approx(losses, rel=1e-5)
    assert [step.grad_norm for step in several] == pytest.approx(norms, rel=1e-4)


@two_gpus
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_two_gpus_go_on_with_the_same_bits(tmp_path, gpus, layout):
    """With evaluations between the steps; their passes are launched and not replayed."""
    go_on_with_the_same_bits(2, tmp_path, gpus, layout)


@two_gpus
@NO_FP8
@pytest.mark.parametrize("copies", ["true", "false"])
def test_two_gpus_go_on_with_the_same_bits_in_fp8(tmp_path, gpus, copies):
    """Weights that were gathered in FP8 are those that are cast after a checkpoint was read."""
    go_on_with_the_same_bits(2, tmp_path, gpus, dict(PR="fp8"), "--peer-copies", copies)


@four_gpus
@pytest.mark.parametrize("name", [name for name in FOUR if "TP4" not in name])  # the tiny model has two KV groups only
def test_four_gpus_go_on_with_the_same_bits(tmp_path, gpus, name):
    layout = FOUR[name]
    go_on_with_the_same_bits(4, tmp_path, gpus, layout)


def go_on_with_the_same_bits(number, tmp_path, gpus, layout, *flags):
    gpus(number)
    unfused, evaluating = dict(FL="false", AC="none", **layout), (*flags, "--eval-interval", 3, "--eval-iters", 1)
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


def test_a_checkpoint_beside_the_training_has_the_bytes_of_one_that_is_waited_for(tmp_path):
    """While a step changes the state that is being copied."""
    job = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    words = [sys.executable, "-m", "tests.checkpoint.background_worker", str(tmp_path), "1", "1", "true"]
    both = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    launching.succeed(subprocess.run(words, env=launching.environment(job=job), cwd=launching.ROOT, **both))
