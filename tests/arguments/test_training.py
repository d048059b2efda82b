"""What the training scripts' arguments come to, where no error is made."""

from __future__ import annotations

import pytest

from megatron_patch.arguments.training import read
from tests.test_launch import flags


@pytest.mark.parametrize(
    "tokens, warmup, iterations, warmup_iterations",
    [(20 * 128, 2 * 128, 20, 2), (20 * 128 + 127, 2 * 128 - 1, 20, 1), (128, 0, 1, 0), (256, 127, 2, 0)],
)
def test_tokens_are_whole_batches_of_them(tmp_path, monkeypatch, tokens, warmup, iterations, warmup_iterations):
    """The original's whole division by GLOBAL_BATCH_SIZE × SEQ_LEN, here 4 × 32."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    config = read("pretrain", flags(tmp_path, TRAIN_TOKENS=tokens, WARMUP_TOKENS=warmup)).config
    assert (config.train_iters, config.warmup_iters) == (iterations, warmup_iterations)
