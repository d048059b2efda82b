"""Eight GPUs of one host learn what one learns, and go on after a stop with the same bits."""

from __future__ import annotations

import pytest
import torch

from tests.gpu.test_training import COMMON, go_on_with_the_same_bits, learn_what_one_learns, learnt_once
from tests.launching import GOLDEN, convert

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(torch.cuda.device_count() < 8, reason="needs eight GPUs")]
LAYOUTS = {
    "DP8": dict(),
    "TP2 DP4 with SP": dict(TP=2, SP="true"),
    "TP4 DP2 with SP": dict(TP=4, SP="true"),
    "TP8 with SP": dict(TP=8, SP="true"),
    "PP2 DP4": dict(PP=2),
    "TP2 PP2 DP2 with SP": dict(TP=2, PP=2, SP="true"),
}
# Two micro-batches for each of eight replicas, eight for one.
BATCHES = dict(GLOBAL_BATCH_SIZE=16, TRAIN_TOKENS=10 * 16 * 64, MODEL_SIZE="auto")


@pytest.fixture(scope="session")
def eight_heads(shared):
    """A model whose attention can be cut eight times; the golden ones have four and two heads of keys."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder, lock = shared
    with lock:
        if not (folder / "eight").exists():
            torch.manual_seed(0)
            sizes = dict(vocab_size=800, hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=8)
            LlamaForCausalLM(LlamaConfig(**sizes, max_position_embeddings=2048)).save_pretrained(folder / "eight-hf")
            AutoTokenizer.from_pretrained(GOLDEN / "hf_mha").save_pretrained(folder / "eight-hf")
            convert(folder / "eight-hf", folder / "eight")
    return folder / "eight"


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_eight_gpus_learn_what_one_learns(tmp_path, gpus, shared, eight_heads, layout):
    one = learnt_once(shared, "one-of-eight", **{**COMMON, **BATCHES, "PRETRAIN_CHECKPOINT_PATH": eight_heads})
    learn_what_one_learns(8, tmp_path, gpus, eight_heads, one, {**BATCHES, **layout})


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_eight_gpus_go_on_with_the_same_bits(tmp_path, gpus, eight_heads, layout):
    go_on_with_the_same_bits(8, tmp_path, gpus, {**BATCHES, "PRETRAIN_CHECKPOINT_PATH": eight_heads, **layout})
