"""A tiny configuration and its batches, for tests that build a model in their own process. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

from megatron_patch.arguments.processes import free_port
from megatron_patch.config import TrainConfig, one_process_config
from megatron_patch.data_paths import NO_DATA, DataSource, parse_data
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
    task, valid = changed.get("task", "pretrain"), changed.pop("valid_data_path", None)
    sources: dict[str, object] = {"train_data": source(changed.pop("train_data_path", ""), task)}
    sources["valid_data"] = None if valid is None else source(valid, task)
    tiny: dict[str, object] = dict(
        name="tiny", output_path="", use_distributed_optimizer=True, precision="bf16", use_flash_attn=True, global_batch_size=2,
        lr=1e-3, min_lr=1e-4, train_iters=4,
    )  # fmt: skip
    model = changed.pop("model", LLAMA_SIZES["tiny"])
    return one_process_config(model, 16, **{**tiny, **sources, **changed})


def source(text: object, task: object = "pretrain") -> DataSource:
    """What a data argument of `task` names; no data for an empty one."""
    return parse_data(str(text), only_json=task == "finetune") if text else NO_DATA
