"""A training run's own checkpoints: whole or not at all, and everything needed to go on exactly.

One folder an iteration in megatron-core's torch_dist format: weights, optimizer, schedule, progress, random state.
Written beside its final name, flushed, renamed; the tracker file last.
"""

from __future__ import annotations

import megatron_patch.core.device as device

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.optimizer import ChainedOptimizer

from megatron_patch.checkpoint.checked_load import load_checked
from megatron_patch.checkpoint.housekeeping import (
    discard_old,
    partial_folder,
    put_in_place,
    remove_left_over,
    write_companions,
)
from megatron_patch.checkpoint.initial_weights import load_from_source
from megatron_patch.checkpoint.optimizer_state import (
    SHARDING,
    load_optimizer_state,
    name_as_saved,
    sharded_optimizer_state,
)
from megatron_patch.checkpoint.streaming_save import save_streaming
from megatron_patch.config import PER_KV_HEAD, TrainConfig
from megatron_patch.core import parallel
from megatron_patch.errors import UserError
from megatron_patch.folders.fingerprint import Origin
from megatron_patch.folders.layout import (
    ModelDescription,
    flush,
    iteration_folder,
    read_model_description,
    resolve_checkpoint,
    write_model_description,
    write_tracker,
)
from megatron_patch.folders.recorded_run import RUN_CONFIG, read_run_config, run_record
from megatron_patch.llama.model_config import LlamaConfig


@dataclass(frozen=True)
class Progress:
    """How far a run has come."""

    iteration: int
    consumed_samples: int
    skipped_iterations: int
    nan_iterations: int


def save_checkpoint(
    config: TrainConfig,
    model: Any,
    optimizer: ChainedOptimizer,
    scheduler: Any,
    progress: Progress,
    origin: Origin = Origin(),  # noqa: B008  frozen
) -> Path:
    """Write the state after `progress.iteration`; every rank calls it. Returns the finished folder.

    `origin` is recorded beside the configuration: what the run was found to begin with.

    Only one run at a time may write into a checkpoint folder: what others have in the making there is removed.
    """
    root = Path(config.checkpoint_folder)
    final = iteration_folder(root, progress.iteration)
    partial = partial_folder(final)
    if torch.distributed.get_rank() == 0:
        remove_left_over(root)
        partial.mkdir(parents=True)
    parallel.barrier()
    state = _state_dict(model, optimizer, scheduler, progress, is_loading=False)
    # The writer's threads read on streams of their own. So the last update, and the fp32 weights that `_state_dict` rebuilds in
    # the gradient buffers, must be finished first.
    device.synchronize()
    save_streaming(state, partial, dict(SHARDING))
    parallel.barrier()
    if torch.distributed.get_rank() == 0:
        _finish(config, origin, partial, final, progress)
    parallel.barrier()
    return final


def _finish(config: TrainConfig, origin: Origin, partial: Path, final: Path, progress: Progress) -> None:
    """Describe, flush, rename, and only then say so in the tracker; older ones go if `--keep-last` asks for it."""
    root, description = final.parent, _description(config)
    write_model_description(partial, description)
    record = json.dumps(run_record(config, origin), indent=2, ensure_ascii=False)
    (partial / RUN_CONFIG).write_text(record + "\n", encoding="utf-8")
    for name in os.listdir(partial):
        flush(partial / name)
    flush(partial)
    put_in_place(partial, final)
    write_tracker(root, str(progress.iteration))
    # What follows reads other folders or removes some; none of it may cost the work that is now on the disk.
    write_companions(config, root, description.dtype, origin.resumed_from)
    discard_old(root, config.options.keep_last)
    remove_left_over(root)


def _description(config: TrainConfig) -> ModelDescription:
    return ModelDescription(
        model=config.model,
        extra_vocab_size=config.extra_vocab_size,
        dtype={"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}[config.precision],
        tensor_model_parallel_size=config.tensor_model_parallel_size,
        pipeline_model_parallel_size=config.pipeline_model_parallel_size,
    )


def resume(folder: Path, model: Any, optimizer: ChainedOptimizer, scheduler: Any) -> Progress:
    """Load everything that `save_checkpoint` wrote into the objects given; every rank calls it.

    Random state is restored where TP and PP are as they were; it belongs to a place in that layout.
    """
    state = _state_dict(model, optimizer, scheduler, Progress(0, 0, 0, 0), is_loading=True)
    recorded = read_run_config(folder) or {}
    if "use_distributed_optimizer" in recorded:
        name_as_saved(optimizer, state["optimizer"], with_zero=bool(recorded["use_distributed_optimizer"]))
    same_layout = _is_same_layout(folder)
    if not same_layout:
        del state["rng"]
    loaded = load_checked(folder, state)
    try:
        module(model).load_state_dict(loaded["model"], strict=True)
        load_optimizer_state(optimizer, loaded["optimizer"])
        # A run may have become longer; everything else of the schedule has been compared.
        lengths = {name: getattr(scheduler, name) for name in ("lr_decay_steps", "wd_incr_steps")}
        scheduler.load_state_dict({**loaded["scheduler"], **lengths})
        if same_layout:
            parallel.set_rng_state(loaded["rng"])
        return _progress(loaded["progress"])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:  # what was read has another form
        reason = f"{type(error).__name__}: {error}"[:300]
        raise UserError(f"{folder} does not hold such a run's state ({reason}); go on from an earlier checkpoint.") from error


def _progress(found: dict[str, Any]) -> Progress:
    if any(type(value) is not int or value < 0 for value in found.values()):
        raise TypeError(f"progress is {str(found)[:200]}")
    return Progress(**found)


def _is_same_layout(folder: Path) -> bool:
    description = read_model_description(resolve_checkpoint(folder))
    return description is not None and (
        description.tensor_model_parallel_size == parallel_state.get_tensor_model_parallel_world_size()
        and description.pipeline_model_parallel_size == parallel_state.get_pipeline_model_parallel_world_size()
    )


def load_weights(path: str, model: Any, gqa_layout: str = PER_KV_HEAD, fallback: LlamaConfig | None = None) -> tuple[str, ...]:
    """The weights alone of a checkpoint of any layout, cast to the model's dtype; `path` is a root or one iteration.

    Args:
        path: a checkpoint's root, or one iteration's folder.
        model: one pipeline stage, in core's DDP wrapper or not.
        gqa_layout: the order of QKV rows in a checkpoint of 2023 that does not tell it, `per-kv-head` or `all-q-first`.
        fallback: what a checkpoint of 2023 without config.json does not record.

    Returns:
        What the user should know, one sentence each.

    Raises:
        UserError: there is no complete checkpoint at `path`.
    """
    location = resolve_checkpoint(path)
    if location.kind == "native":
        _load_native(location.folder, model)
        return ()
    return load_from_source(path, module(model), gqa_layout, fallback)


def _load_native(folder: Path, model: Any) -> None:
    state = {"model": module(model).sharded_state_dict(metadata=dict(SHARDING))}
    loaded = load_checked(folder, state)
    module(model).load_state_dict(loaded["model"], strict=True)


def _state_dict(
    model: Any, optimizer: ChainedOptimizer, scheduler: Any, progress: Progress, *, is_loading: bool
) -> dict[str, Any]:
    weights = module(model).sharded_state_dict(metadata=dict(SHARDING))
    return {
        "model": weights,
        "optimizer": sharded_optimizer_state(optimizer, weights, is_loading=is_loading),
        "scheduler": scheduler.state_dict(),
        "progress": dict(vars(progress)),
        "rng": _sharded_rng(),
    }


def _sharded_rng() -> ShardedObject:
    """This rank's random state by its place among stages and tensor-parallel ranks, once for all replicas."""
    shape = (
        parallel_state.get_pipeline_model_parallel_world_size(),
        parallel_state.get_tensor_model_parallel_world_size(),
    )
    place = (parallel_state.get_pipeline_model_parallel_rank(), parallel_state.get_tensor_model_parallel_rank())
    return ShardedObject("rng", parallel.rng_state(), shape, place, replica_id=parallel_state.get_data_parallel_rank())


def module(model: Any) -> Any:
    """The model inside core's DDP wrapper."""
    return model.module if hasattr(model, "module") else model
