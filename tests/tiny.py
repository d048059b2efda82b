"""A tiny configuration and its batches, for tests that build a model in their own process. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from megatron_patch.arguments.processes import free_port
from megatron_patch.config import Options, TrainConfig
from megatron_patch.llama.model_config import LLAMA_SIZES


def be_alone() -> None:
    """Set torchrun's variables so that this process will be the only one of its group."""
    os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(free_port()))


def tiny_batches(seed: int, count: int) -> Iterator[dict[str, Any]]:
    """`count` micro-batches for `tiny_config`: random tokens [1, 16], all of them learnt."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        tokens = torch.randint(0, 2048, (1, 17), generator=generator)
        yield {"tokens": tokens[:, :-1], "labels": tokens[:, 1:].contiguous(), "loss_mask": torch.ones(1, 16)}


def tiny_config(**changed: object) -> TrainConfig:
    """Four iterations of the tiny model in one process: bf16, ZeRO, 2 micro-batches of 1 sample of 16 tokens.

    `changed` are fields of TrainConfig with other values.
    """
    values = dict(
        task="pretrain", name="tiny", model=LLAMA_SIZES["tiny"], extra_vocab_size=0, load=None, output_path="",
        tensor_model_parallel_size=1, pipeline_model_parallel_size=1, sequence_parallel=False,
        use_distributed_optimizer=True, precision="bf16", recompute="none", use_flash_attn=True, micro_batch_size=1,
        global_batch_size=2, lr=1e-3, min_lr=1e-4, seq_length=16, pad_length=16, train_data_path="", valid_data_path=None,
        train_iters=4, options=Options(),
    )  # fmt: skip
    assert set(changed) <= set(values), set(changed) - set(values)
    return TrainConfig(**{**values, **changed})
