"""How what was written becomes a checkpoint: described, looked over, flushed, renamed, and named in the tracker.

Imports no torch, so that the process that writes beside the training starts at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from megatron_patch.checkpoint.housekeeping import (
    ONLY_BEST,
    discard_old,
    discard_surpassed,
    put_in_place,
    remove_left_over,
    warn,
    write_companions,
)
from megatron_patch.config import TrainConfig
from megatron_patch.errors import UserError, naming, refusal
from megatron_patch.folders.durable_files import flush
from megatron_patch.folders.layout import ModelDescription, iteration_folder, write_model_description
from megatron_patch.folders.tracker import BEST_TRACKER, write_tracker
from megatron_patch.formats.nodes_file import lacking


@dataclass(frozen=True)
class Ending:
    """What is left to do when every rank has written.

    Attributes:
        config: the run's.
        description: what model.json says.
        resumed_from: the checkpoint of another run that this one went on from.
        partial, final: the folder's name until then, and from then on.
        iteration: the checkpoint's.
        best_iteration: that of the lowest validation loss.
        small: name → bytes of the small files that stand beside the tensors.
        sizes: name → bytes of each file that was written.
    """

    config: TrainConfig
    description: ModelDescription
    resumed_from: str | None
    partial: Path
    final: Path
    iteration: int
    best_iteration: int
    small: Mapping[str, bytes]
    sizes: Mapping[str, int]


def begin(partial: Path, only_best: bool) -> None:
    """Make the empty folder that is written. What killed saves have left is removed before.

    Args:
        only_best: whether it is saved for its validation loss alone.
    """
    partial.mkdir(parents=True)
    if only_best:
        (partial / ONLY_BEST).touch()


def finish(ending: Ending) -> None:
    """Do all of `steps`, one after the other. `tidy` is a request of its own.

    Raises:
        UserError: a file is not as it was written.
        OSError: the operating system refuses something.
    """
    for step in steps(ending):
        step()


def steps(ending: Ending) -> tuple[Callable[[], None], ...]:
    """Describe, look whether all is there, flush; rename; only then say so in the tracker. Then it is complete.

    Nodes with disks of their own do each step before any does the next. So all disks have a checkpoint in common at any
    moment.
    """
    partial, final, root = ending.partial, ending.final, ending.final.parent

    def name_it() -> None:
        if ending.config.options.save_best and iteration_folder(root, ending.best_iteration).is_dir():
            write_tracker(root, str(ending.best_iteration), BEST_TRACKER)
        write_tracker(root, str(ending.iteration))

    return lambda: _describe(ending), lambda: put_in_place(partial, final), name_it


def tidy(ending: Ending) -> None:
    """Look after what lies beside a checkpoint that is complete: companions, and older ones if `--keep-last` says so.

    What is refused here is a warning. The work is on the disk, so neither the save nor the run has failed.
    """
    root = ending.final.parent
    parts: tuple[Callable[[], object], ...] = (
        lambda: write_companions(ending.config, root, ending.description.dtype, ending.resumed_from),
        lambda: discard_surpassed(root),
        lambda: discard_old(root, ending.config.options.keep_last),
        lambda: remove_left_over(root),
    )
    for part in parts:
        try:
            part()
        except (OSError, UserError) as error:
            why = refusal(error) if isinstance(error, OSError) else str(error)
            warn(f"{ending.final} is complete, and older checkpoints beside it could not be looked after ({why.rstrip('.')}).")


def _describe(ending: Ending) -> None:
    partial = ending.partial
    write_model_description(partial, ending.description, ending.small)
    for name, data in ending.small.items():
        with naming(partial / name), open(partial / name, "wb") as stream:
            stream.write(data)
    for name, end in ending.sizes.items():
        size = (partial / name).stat().st_size
        if size != end:
            raise UserError(f"{partial / name} has {size} bytes, and {end} were written to it; the disk has lost the others.")
    if ending.config.lora is not None and not lacking(partial):  # other nodes' parts of an adapter are not here
        from megatron_patch.checkpoint.peft_folder import write_beside  # the only kind of run that needs torch here

        write_beside(ending.config.model, ending.config.lora, partial)
    for path in (*partial.rglob("*"), partial):
        flush(path)
