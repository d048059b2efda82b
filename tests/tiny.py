"""Configurations, and rows for them, for tests that build a model in their own process. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from megatron_patch.arguments.processes import free_port
from megatron_patch.config import Options, TrainConfig
from megatron_patch.llama.model_config import LLAMA_SIZES


def be_alone() -> None:
    """Make this process the only one of the group that it will start."""
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))


def tiny_batches(seed: int, count: int) -> Iterator[dict[str, Any]]:
    """Micro-batches of `tiny_config`: random tokens, all learnt."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        tokens = torch.randint(0, 2048, (1, 17), generator=generator)
        yield {"tokens": tokens[:, :-1], "labels": tokens[:, 1:].contiguous(), "loss_mask": torch.ones(1, 16)}


def tiny_config(**changed: object) -> TrainConfig:
    """Four bf16 iterations of the tiny model with ZeRO in one process, 2 × 1 samples of 16 tokens; but for `changed`."""
    values = dict(
        task="pretrain", name="tiny", model=LLAMA_SIZES["tiny"], extra_vocab_size=0, load=None, output_path="",
        tensor_model_parallel_size=1, pipeline_model_parallel_size=1, sequence_parallel=False,
        use_distributed_optimizer=True, precision="bf16", recompute="none", use_flash_attn=True, micro_batch_size=1,
        global_batch_size=2, lr=1e-3, min_lr=1e-4, seq_length=16, pad_length=16, train_data_path="", valid_data_path=None,
        train_iters=4, options=Options(),
    )  # fmt: skip
    assert set(changed) <= set(values), set(changed) - set(values)
    return TrainConfig(**{**values, **changed})
