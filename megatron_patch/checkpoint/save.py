"""Writing a training run's checkpoint: whole or not at all, and everything that is needed to go on exactly.

One folder an iteration, in megatron-core's torch_dist format: weights, optimizer, schedule, progress, random state. It
is written beside its final name, flushed and renamed; the tracker file comes last.
"""

from __future__ import annotations

import megatron_patch.core.device as device

import json
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from megatron.core import parallel_state
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from megatron.core.optimizer import ChainedOptimizer

from megatron_patch.checkpoint.adapter_folder import stores_base, trained_alone, write_beside
from megatron_patch.checkpoint.housekeeping import (
    ONLY_BEST,
    discard_old,
    discard_surpassed,
    partial_folder,
    put_in_place,
    remove_left_over,
    write_companions,
)
from megatron_patch.checkpoint.optimizer_state import SHARDING, sharded_optimizer_state
from megatron_patch.checkpoint.refusals import RefusingFiles, SaveFailed, together
from megatron_patch.config import TrainConfig
from megatron_patch.core import parallel
from megatron_patch.folders.durable_files import flush, write_text
from megatron_patch.folders.fingerprint import Origin
from megatron_patch.folders.layout import ModelDescription, iteration_folder, write_model_description
from megatron_patch.folders.recorded_run import RUN_CONFIG, run_record
from megatron_patch.folders.tracker import BEST_TRACKER, write_tracker
from megatron_patch.formats import progress as shown
from megatron_patch.formats.distcp_metadata import COMMON, check_files, write_backends
from megatron_patch.formats.dtypes import of_precision

_THREADS = 2  # files of a rank, written side by side


@dataclass(frozen=True)
class RunProgress:
    """How far a run has come.

    Attributes:
        iteration: iterations that are done; the last one's checkpoint has this number.
        consumed_samples: training samples in their batches.
        skipped_iterations: of these iterations, those whose gradients overflowed in fp16.
        nan_iterations: those whose gradients were not finite in another precision.
        best_loss: the lowest validation loss so far; None before the first evaluation.
        best_iteration: when that was.
        evaluations_since_best: evaluations since then, none of which was lower.
    """

    iteration: int
    consumed_samples: int
    skipped_iterations: int
    nan_iterations: int
    best_loss: float | None = None
    best_iteration: int = 0
    evaluations_since_best: int = 0


def save_checkpoint(
    config: TrainConfig,
    model: Any,
    optimizer: ChainedOptimizer,
    scheduler: Any,
    progress: RunProgress,
    origin: Origin = Origin(),  # noqa: B008  frozen
    *,
    only_best: bool = False,
) -> Path:
    """Write the state after `progress.iteration`. Every rank calls it, between two steps. Returns the finished folder.

    Only one run at a time may write into a checkpoint folder: what others have in the making there is removed.

    Args:
        config: the run's configuration, recorded beside the weights.
        model, optimizer, scheduler: its state.
        progress: how far it has come.
        origin: what it was found to begin with, recorded beside the configuration.
        only_best: whether it is saved for its validation loss alone; then it goes when it is the best no more.

    Raises:
        SaveFailed: the operating system refused something on any rank. The last checkpoint is still the last one, and
            nothing of this one is left. Every rank raises it.
    """
    root = Path(config.checkpoint_folder)
    final = iteration_folder(root, progress.iteration)
    partial = partial_folder(final)
    try:
        together(lambda: _begin(root, partial, only_best))
        how = {"weights_only": config.options.save_weights_only, "trained_only": not stores_base(config)}
        state = run_state(model, optimizer, scheduler, progress, is_loading=False, **how)
        # The writer's threads read on streams of their own. So the last update, and the fp32 weights that `run_state`
        # rebuilds in the gradient buffers, must be finished first.
        device.synchronize()
        together(lambda: _write_state(state, partial))
        together(lambda: _finish(config, origin, partial, final, progress))
    except SaveFailed:
        parallel.barrier()  # no rank writes any more
        if torch.distributed.get_rank() == 0:
            remove_left_over(root)
        raise
    return final


def _begin(root: Path, partial: Path, only_best: bool) -> None:
    """Make the folder that is written; on the first rank."""
    if torch.distributed.get_rank() == 0:
        remove_left_over(root)
        partial.mkdir(parents=True)
        if only_best:
            (partial / ONLY_BEST).touch()


def _finish(config: TrainConfig, origin: Origin, partial: Path, final: Path, progress: RunProgress) -> None:
    """Describe, look whether all is there, flush, rename, and only then say so in the tracker; on the first rank.

    Older ones go if `--keep-last` asks for it.
    """
    if torch.distributed.get_rank() != 0:
        return
    root, description = final.parent, _description(config)
    write_model_description(partial, description)
    write_text(partial / RUN_CONFIG, json.dumps(run_record(config, origin), indent=2, ensure_ascii=False) + "\n")
    check_files(partial)
    write_beside(config, partial)
    for path in (*partial.rglob("*"), partial):
        flush(path)
    put_in_place(partial, final)
    if config.options.save_best and iteration_folder(root, progress.best_iteration).is_dir():
        write_tracker(root, str(progress.best_iteration), BEST_TRACKER)
    write_tracker(root, str(progress.iteration))
    # What follows reads other folders or removes some. None of it may cost the work that is now on the disk.
    write_companions(config, root, description.dtype, origin.resumed_from)
    discard_surpassed(root)
    discard_old(root, config.options.keep_last)
    remove_left_over(root)


def _description(config: TrainConfig) -> ModelDescription:
    return ModelDescription(
        model=config.model,
        extra_vocab_size=config.extra_vocab_size,
        dtype=of_precision(config.precision).name,
        tensor_model_parallel_size=config.tensor_model_parallel_size,
        pipeline_model_parallel_size=config.pipeline_model_parallel_size,
    )


def run_state(
    model: Any,
    optimizer: ChainedOptimizer,
    scheduler: Any,
    progress: RunProgress,
    *,
    is_loading: bool,
    weights_only: bool = False,
    trained_only: bool = False,
) -> dict[str, Any]:
    """Everything that a checkpoint holds, as megatron-core's sharded state dict of this rank; no memory is copied.

    In bf16 under ZeRO-1 the fp32 weights have no memory of their own. They are rebuilt in the gradient buffers, which
    are free between two steps: to be saved from there, or loaded into there.

    Args:
        model, optimizer, scheduler, progress: the run's.
        is_loading: whether the dict is for loading, so that the moments must be allocated.
        weights_only: leave out what going on takes: optimizer, schedule, random state.
        trained_only: leave out weights that are not trained.
    """
    weights = module(model).sharded_state_dict(metadata=dict(SHARDING))
    if trained_only:
        weights = trained_alone(module(model), weights)
    if weights_only:
        return {"model": weights, "progress": dict(vars(progress))}
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
    """The model inside core's DDP wrapper; a model without one is itself."""
    return model.module if hasattr(model, "module") else model


def _write_state(state: dict[str, Any], folder: Path) -> None:
    """Write what `dist_checkpointing.save` writes of `state` into the empty `folder`; every rank calls it.

    core's steps are taken one by one, so that torch's own writer takes tensor by tensor from the device to the disk.
    core's writer first copies everything that a rank saves into host memory (94 GB for LLaMA-2 7B), and starts a
    process that imports everything again, to hand the results of other processes over. torch's keeps one tensor for
    each file that it is writing. Both write the same files, but that core 0.19 keeps common.pt among the objects. Here
    it is a file in any case, which every core reads.
    """
    sharded, common = save_preprocess({**state, "content_metadata": dict(SHARDING)})
    first = torch.distributed.get_rank() == 0
    files = RefusingFiles()
    if first:
        with files.create_stream(folder / COMMON, "wb") as stream:
            torch.save(common, stream)  # type: ignore[arg-type]
    # Those tensors and objects of which this rank has the first copy.
    mine, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded, keep_only_main_replica=True)
    total = sum(entry.data.nbytes for entries in mine.values() for entry in entries if isinstance(entry.data, torch.Tensor))
    # Ranks have about as many bytes to write, so the first one's progress is shown for all. `dcp.save` ends when all
    # have written.
    with shown.Progress("saving", total) if first else nullcontext() as progress:
        writer = dcp.FileSystemWriter(folder, thread_count=_THREADS, sync_files=False)
        writer.fs = files
        try:
            dcp.save(mcore_to_pyt_state_dict(mine), storage_writer=writer, planner=_Planner(progress))
        finally:
            files.raise_refused()  # before what followed from it: torch renames a file that could not be made
    if first:
        write_backends(folder)


class _Planner(MCoreSavePlanner):
    """core's planner. It also counts the bytes that the writer takes."""

    def __init__(self, progress: shown.Progress | None) -> None:
        super().__init__(dedup_replicated_tensors=False, flatten_state_dict=False)
        self._progress = progress

    def resolve_data(self, write_item: Any) -> Any:
        data = super().resolve_data(write_item)
        if self._progress is not None and isinstance(data, torch.Tensor):
            self._progress.add(data.nbytes)
        return data
