"""Which checkpoints of a run can be used, as far as is seen without torch, and what is said of one that cannot."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from megatron_patch.errors import UserError, lies_outside, once_more, refusal
from megatron_patch.folders.layout import check_small_files, iteration_folder, read_model_description
from megatron_patch.folders.recorded_run import read_run_config
from megatron_patch.folders.tracker import TRACKER

# Ends the name of a checkpoint that cannot be used: it is kept, and no run goes on from it.
DAMAGED = ".damaged"


def usable_before(folder: Path) -> Path | None:
    """The last checkpoint of a run before `folder`'s, as far as can be seen without torch; None where there is none."""
    earlier = next(usable_up_to(folder.parent, int(folder.name.removeprefix("iter_")) - 1), None)
    return None if earlier is None else iteration_folder(folder.parent, earlier)


def usable_up_to(root: Path, last: int) -> Iterator[int]:
    """The iterations up to `last` whose checkpoints can be used, as far as is seen without torch, the last first."""
    digits = (found.name.removeprefix("iter_") for found in root.glob("iter_*") if found.is_dir())
    for number in sorted((int(text) for text in digits if text.isdecimal() and int(text) <= last), reverse=True):
        if damage(iteration_folder(root, number)) is None:
            yield number


def damage(folder: Path) -> str | None:
    """Why the checkpoint `folder` cannot be used, as far as its small files tell; None if nothing speaks against it.

    Raises:
        OSError: nobody knows, since they cannot be read for a reason that lies outside of them.
    """
    try:
        return once_more(lambda: _seen(folder))
    except OSError as error:
        if lies_outside(error):
            raise
        return refusal(error)


def _seen(folder: Path) -> str | None:
    if not folder.is_dir():
        number, tracker = int(folder.name.removeprefix("iter_")), folder.parent / TRACKER
        return f"{tracker} says {number}, and there is no {folder.name}; remove that file to start anew."
    try:
        read_run_config(folder)
        read_model_description(folder)
        check_small_files(folder)
    except UserError as error:
        return str(error)
    return None


def damage_sentence(folder: Path, why: str, instead: Path) -> str:
    """What happens with a checkpoint that cannot be used."""
    return (
        f"{folder} cannot be used: {why.rstrip('.')}. It is kept under a name that ends in {DAMAGED}, and the run goes on from "
        f"{instead.name}."
    )
