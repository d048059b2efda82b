"""Writing a training run's checkpoint: whole or not at all, and everything that is needed to go on exactly.

One folder an iteration, in megatron-core's torch_dist format: weights, optimizer, schedule, progress, random state. It
is written beside its final name, flushed and renamed; the tracker file comes last. Here the training waits for all of
that; `background.py` writes the same files beside it.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import json
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from megatron.core.optimizer import ChainedOptimizer

from megatron_patch.checkpoint.adapter_folder import stores_base
from megatron_patch.checkpoint.contents import contents_of
from megatron_patch.checkpoint.finish import Ending, begin, steps, tidy
from megatron_patch.checkpoint.housekeeping import partial_folder, remove_left_over
from megatron_patch.checkpoint.local_output import keeps_folder, on_this_node
from megatron_patch.checkpoint.refusals import SaveFailed, together
from megatron_patch.checkpoint.run_progress import RunProgress
from megatron_patch.config import TrainConfig
from megatron_patch.core import parallel
from megatron_patch.core.messages import from_first_rank
from megatron_patch.folders.fingerprint import Origin
from megatron_patch.folders.layout import CORE_METADATA, ModelDescription, iteration_folder
from megatron_patch.folders.recorded_run import RUN_CONFIG, run_record
from megatron_patch.formats import progress as shown
from megatron_patch.formats.distcp_metadata import COMMON, METADATA, backends_file
from megatron_patch.formats.dtypes import of_precision
from megatron_patch.formats.new_metadata import Chunk, Span, metadata_file
from megatron_patch.processes import place

Written = tuple[list[Chunk], dict[str, Span]]  # what a rank has written: its tensors, and key → place of its objects


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
    final = iteration_folder(Path(config.checkpoint_folder), progress.iteration)
    partial, keeps = partial_folder(final), keeps_folder(config)
    try:
        together(lambda: _begin(partial, only_best) if keeps else None)
        weights_only, trained_only = config.options.save_weights_only, not stores_base(config)
        parts = (model, optimizer, scheduler, progress)
        contents = contents_of(*parts, weights_only=weights_only, trained_only=trained_only)
        # Ranks have about as many bytes to write, so the first one's progress is shown for all.
        with shown.Progress("saving", contents.nbytes) if parallel.rank() == 0 else nullcontext() as shows:
            spans = together(lambda: contents.write(partial, place.advance if shows is None else _counted(shows)))
        everybodys = parallel.from_all_ranks(contents.described(spans))
        common = from_first_rank(contents.common) if config.options.local_output else contents.common
        left = on_this_node(ending(config, origin, progress, common, everybodys), everybodys)
        for step in steps(left):
            together(step if keeps else _nothing)
            place.advance()
        together(lambda: tidy(left) if keeps else None)  # the others wait, so that the next step's time is its own
    except SaveFailed:
        parallel.barrier()  # no rank writes any more
        if keeps:
            remove_left_over(final.parent)
        raise
    return final


def _begin(partial: Path, only_best: bool) -> None:
    remove_left_over(partial.parent)
    begin(partial, only_best)


def _counted(shows: shown.Progress) -> Callable[[int], None]:
    """What counts written bytes for whoever watches for a standstill, and for the bar."""

    def count(size: int) -> None:
        place.advance(size)
        shows.add(size)

    return count


def _nothing() -> None:
    """The part of a rank that keeps no folder."""


def ending(config: TrainConfig, origin: Origin, progress: RunProgress, common: bytes, everybodys: Iterable[Written]) -> Ending:
    """What is left to do when every rank has written `everybodys`.

    Args:
        common: `Contents.common` of the first rank.
    """
    written = list(everybodys)
    chunks = [chunk for found, _ in written for chunk in found]
    objects = {key: span for _, found in written for key, span in found.items()}
    sizes: dict[str, int] = {}
    for span in (*(chunk.span for chunk in chunks), *objects.values()):
        sizes[span.file] = max(sizes.get(span.file, 0), span.start + span.length)
    record = json.dumps(run_record(config, origin), indent=2, ensure_ascii=False) + "\n"
    final = iteration_folder(Path(config.checkpoint_folder), progress.iteration)
    return Ending(
        config=config,
        description=_description(config),
        resumed_from=origin.resumed_from,
        partial=partial_folder(final),
        final=final,
        iteration=progress.iteration,
        best_iteration=progress.best_iteration,
        small={
            COMMON: common,
            METADATA: metadata_file(chunks, objects),
            CORE_METADATA: backends_file(),
            RUN_CONFIG: record.encode(),
        },
        sizes=sizes,
    )


def _description(config: TrainConfig) -> ModelDescription:
    return ModelDescription(
        model=config.model,
        extra_vocab_size=config.extra_vocab_size,
        dtype=of_precision(config.weight_precision).name,
        tensor_model_parallel_size=config.tensor_model_parallel_size,
        pipeline_model_parallel_size=config.pipeline_model_parallel_size,
    )
