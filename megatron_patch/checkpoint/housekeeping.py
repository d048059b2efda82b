"""The folder of a training run's checkpoints: partial names, companions, removal of old ones. Imports no torch.

Companions are config.json and the tokenizer's files. Only one run at a time may write into such a folder. Another run
would take its unfinished save for one that a kill has left, and remove it.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from megatron_patch.config import TrainConfig
from megatron_patch.data.tokenizer import load_tokenizer
from megatron_patch.errors import UserError, refusal
from megatron_patch.folders.damage import DAMAGED
from megatron_patch.folders.durable_files import flush, write_text
from megatron_patch.folders.hugging_face_folder import holds_tokenizer
from megatron_patch.folders.layout import COMPANIONS, TOKENIZER_FILES, copy_companions, resolve_checkpoint
from megatron_patch.folders.tracker import BEST_TRACKER, checkpoint_root, read_tracker, write_tracker
from megatron_patch.llama.model_config import to_hf_config
from megatron_patch.llama.position_limit import raised_limit

_LOGGER = logging.getLogger(__name__)

# Ends the name of a folder that is no checkpoint: one that is being written, or one that is to be removed.
_PARTIAL = ".partial"
# An empty file of this name is in a checkpoint that was saved for its validation loss alone.
ONLY_BEST = "only_best"


def partial_folder(final: Path) -> Path:
    """Where the checkpoint `final` is written before it gets its name."""
    return final.with_name(final.name + _PARTIAL)


def put_in_place(partial: Path, final: Path) -> None:
    """Give `partial` its final name.

    If `final` exists (the user had set the tracker back to an earlier iteration), it is discarded first.
    """
    if os.path.lexists(final):
        _discard(final)
    os.replace(partial, final)
    flush(final.parent)


def discard_old(root: Path, keep: int) -> None:
    """Discard each iteration's folder of which `keep` others have higher numbers and were written after it.

    The folder that `best_checkpointed_iteration.txt` names stays. Folders numbered above the tracker are neither
    counted nor removed: the user went back behind them and may want them. Once the run has passed those numbers, they
    count as what they are: older than what was written since.

    Args:
        root: the run's folder of checkpoints.
        keep: how many stay, the tracker's own included; 0 keeps all.

    Raises:
        UserError: `keep` is negative.
    """
    if keep < 0:
        raise UserError(f"{keep} training checkpoints cannot be kept; give their number, or 0 to keep all.")
    tracker = read_tracker(root)
    if keep == 0 or tracker is None or not tracker.isdecimal():
        return
    # (number, when it was written, folder)
    found = [
        (int(folder.name[5:]), folder.stat().st_mtime_ns, folder)
        for folder in root.glob("iter_*")
        if folder.name[5:].isdecimal() and folder.is_dir()
    ]
    found = [one for one in found if one[0] <= int(tracker)]
    best = read_tracker(root, BEST_TRACKER)
    for number, written, folder in found:
        if str(number) != best and sum(other[0] > number and other[1] >= written for other in found) >= keep:
            _discard_or_tell(folder)


def _discard_or_tell(folder: Path) -> None:
    try:
        _discard(folder)
    except OSError as error:
        warn(f"{folder} is not wanted any more and could not be removed ({refusal(error).rstrip('.')}); remove it yourself.")


def discard_surpassed(root: Path) -> None:
    """Discard checkpoints that were saved for their validation loss alone, when another is the best by now.

    The tracker's own stays, since the run goes on from it, and so do those with higher numbers: the user went back.
    """
    best, tracker = read_tracker(root, BEST_TRACKER), read_tracker(root)
    for folder in root.glob("iter_*"):
        number = folder.name[5:]
        if not (number.isdecimal() and tracker and tracker.isdecimal() and (folder / ONLY_BEST).is_file()):
            continue
        if int(number) < int(tracker) and str(int(number)) != best:
            _discard_or_tell(folder)


def remove_left_over(root: Path) -> None:
    """Remove what was discarded, and what a kill left in the middle of a save; tens of GB for LLaMA-2 7B.

    What the operating system refuses is a warning: this runs where a save has just failed, and on one rank alone.
    """
    try:
        found = list(root.glob(f"iter_*{_PARTIAL}"))
    except OSError as error:
        warn(f"{root} cannot be looked through for what is left over ({refusal(error).rstrip('.')}); the next save looks again.")
        return
    for folder in found:
        try:
            if folder.is_symlink():  # a checkpoint that was moved to another disk; what the link names is the user's
                folder.unlink()
            elif folder.is_dir():
                shutil.rmtree(folder)
        except OSError as error:
            warn(f"{folder} is left over and could not be removed ({error}); remove it yourself.")


def _discard(folder: Path) -> None:
    """Give a checkpoint a name that `remove_left_over` removes.

    It is renamed and not removed at once, so that a kill amid the removal leaves nothing that looks whole.
    """
    os.replace(folder, folder.with_name(f"{folder.name}.old{_PARTIAL}"))


def set_aside(folder: Path, instead: Path) -> None:
    """Keep a checkpoint that cannot be used under a name that says so, and name `instead` in the tracker.

    The tracker comes first. So a kill between the two leaves a checkpoint above the tracker, which nobody loads.

    Raises:
        OSError: it cannot be renamed.
    """
    write_tracker(folder.parent, str(int(instead.name.removeprefix("iter_"))))
    if not folder.is_dir():
        return
    names = (folder.with_name(f"{folder.name}{DAMAGED}{f'-{place}' if place else ''}") for place in itertools.count())
    os.replace(folder, next(name for name in names if not os.path.lexists(name)))
    flush(folder.parent)


def write_companions(config: TrainConfig, root: Path, dtype: str, resumed_from: str | None = None) -> None:
    """config.json and the tokenizer beside the iterations, so that any of them converts to Hugging Face form.

    What is there stays as it is, but for a position limit that the run has raised. A checkpoint is whole without these
    files, so one that cannot be copied does not stop the run. It is a warning, and is tried again at the next save.
    """
    tokenizer = config.options.tokenizer_path
    # Two tokenizers' files beside each other would make a third one.
    names = tuple(name for name in COMPANIONS if not tokenizer or name not in TOKENIZER_FILES)
    if tokenizer:
        with _told(root, TOKENIZER_FILES):
            copy_companions(_existing(tokenizer), root, TOKENIZER_FILES)
    if resumed_from and Path(resumed_from).parent.is_dir():
        with _told(root, names):
            copy_companions(Path(resumed_from).parent, root, names)
    if config.load:
        with _told(root, names):
            copy_companions(_source_root(config.load), root, names)
    with _told(root, ("config.json",)):
        if not (root / "config.json").exists():
            made = to_hf_config(config.model, dtype=dtype)
            if holds_tokenizer(root):  # the token that answers were taught to end in
                made["eos_token_id"] = load_tokenizer(root, rows=config.vocab_size).eos
            write_text(root / "config.json", json.dumps(made, indent=2) + "\n")
        raised = raised_limit(root / "config.json", config.model)
        if raised is not None:  # --allow-longer-sequences
            write_text(root / "config.json", raised)


def _existing(folder: str) -> Path:
    if not Path(folder).is_dir():
        raise UserError(f"there is no folder {folder} any more")
    return Path(folder)


def _source_root(load: str) -> Path:
    """The root that PRETRAIN_CHECKPOINT_PATH lies in; its iteration itself may have gone since it was loaded."""
    return checkpoint_root(Path(os.path.realpath(load))) or resolve_checkpoint(_existing(load)).root


@contextlib.contextmanager
def _told(root: Path, names: tuple[str, ...]) -> Iterator[None]:
    """A failure to copy `names` becomes a warning, or nothing where `root` already has what a conversion needs."""
    try:
        yield
    except (OSError, UserError) as error:
        if (root / "config.json").is_file() and holds_tokenizer(root):
            return
        lacking = ", ".join(name for name in names if not (root / name).exists())
        warn(
            f"of {lacking} none could be copied to {root} ({str(error).rstrip('.')}). "
            "The checkpoint is whole; copy the tokenizer there before you convert it."
        )


def warn(sentence: str) -> None:
    """Tell the user what could not be done beside a save."""
    _LOGGER.warning(f"warning: {sentence}")
