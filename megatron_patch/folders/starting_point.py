"""What a run starts from: its own last checkpoint, another run's with everything in it, weights alone, or nothing.

Imports no torch: the launcher says what was decided before a process starts, and each process decides the same again.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from megatron_patch.config import TrainConfig
from megatron_patch.errors import UserError, once_more
from megatron_patch.folders.damage import damage, usable_before
from megatron_patch.folders.fingerprint import Origin, observe
from megatron_patch.folders.layout import CheckpointLocation, iteration_folder, resolve_checkpoint
from megatron_patch.folders.recorded_run import Comparison, compare, read_run_config
from megatron_patch.folders.tracker import TRACKER, checkpoint_root, read_tracker


@dataclass(frozen=True)
class Start:
    """What a run starts from.

    Attributes:
        folder: one iteration's folder, of which everything is taken: weights, optimizer, schedule, progress. None:
            `config.load` gives the weights, or they are random.
        config: the run's configuration. A run that goes on keeps naming the model that it began with.
        origin: what the run began with, to be recorded at each save.
        lines: what the user should know about it.
        damaged: later checkpoints of the run that it cannot go on from, and why not.
    """

    folder: Path | None
    config: TrainConfig
    origin: Origin
    lines: tuple[str, ...] = ()
    damaged: tuple[tuple[Path, str], ...] = ()


def find_start(config: TrainConfig) -> Start:
    """Decide what the run `config` starts from.

    Its own last checkpoint comes first, so that a command that is run again goes on. Without one, `--resume-from` and a
    PRETRAIN_CHECKPOINT_PATH that names a run of this output folder lead to that run's checkpoint.

    Raises:
        UserError: a folder holds something else than the arguments ask for; each difference is named.
        OSError: a file cannot be read for a reason that lies outside of it.
    """
    return once_more(lambda: _found(config))


def _found(config: TrainConfig) -> Start:
    origin = observe(config)
    own, damaged = own_checkpoint(config, origin)
    if own is not None:
        return replace(_from_own(config, origin, own), damaged=damaged)
    if config.options.resume_from:
        return _from_other(config, origin, resume_location(config.options.resume_from))
    return _from_load(config, origin)


def own_checkpoint(config: TrainConfig, origin: Origin) -> tuple[Path | None, tuple[tuple[Path, str], ...]]:
    """The run's own last checkpoint that can be used, which it goes on from; None at its first start.

    What takes torch to be read is not looked at. Later ones that cannot be used come with the reason.

    Raises:
        UserError: the tracker names a folder that is not there or is damaged, and there is none before it; or the
            folder belongs to a run that learns something else, or holds weights alone.
        OSError: a file cannot be read for a reason that lies outside of it.
    """
    root = Path(config.checkpoint_folder)
    tracker = read_tracker(root)
    if tracker is None:
        return None, ()
    if not tracker.isdecimal():
        raise UserError(
            f"{root / TRACKER} says {tracker!r}, which no training run writes there; "
            "write another OUTPUT_BASEPATH, or remove what is in that folder."
        )
    folder = iteration_folder(root, int(tracker))
    damaged: tuple[tuple[Path, str], ...] = ()
    if (why := damage(folder)) is not None:
        earlier = usable_before(folder)
        if earlier is None:
            raise UserError(why)
        folder, damaged = earlier, ((folder, why),)
    recorded = read_run_config(folder)
    if recorded is not None:
        found = compare(config, origin, recorded, root)
        if found.hindering or found.longer:
            raise UserError(
                f"{root} holds a run of the same name with other arguments: {'; '.join(found.hindering + found.longer)}. "
                "Write another OUTPUT_BASEPATH, or the arguments of that run to go on with it."
            )
        _refuse_weights_alone(folder, recorded)
    return folder, damaged


def _refuse_weights_alone(folder: Path, recorded: dict[str, Any]) -> None:
    """Raise if a checkpoint was written with `--save-weights-only`: going on needs what it lacks."""
    if recorded["options"].get("save_weights_only") is True:
        raise UserError(
            f"{folder} holds weights alone (--save-weights-only): optimizer, learning-rate schedule and random state were not "
            "saved, and going on needs them. To start from its weights, name it as PRETRAIN_CHECKPOINT_PATH with another "
            "OUTPUT_BASEPATH."
        )


def resume_location(path: str) -> CheckpointLocation:
    """The iteration that `--resume-from` means.

    Raises:
        UserError: there is no training checkpoint of this project.
    """
    try:
        location = resolve_checkpoint(path)
    except (OSError, UserError) as error:
        raise UserError(str(error)) from None
    if location.kind != "native" or read_run_config(location.folder) is None:
        raise UserError(
            f"{location.folder} is no training checkpoint of this project (run_config.json is not there): write a folder of "
            "OUTPUT_BASEPATH/checkpoint or one iteration's folder in it; PRETRAIN_CHECKPOINT_PATH takes the weights of others."
        )
    _refuse_weights_alone(location.folder, read_run_config(location.folder) or {"options": {}})
    return location


def root_of(location: CheckpointLocation) -> Path:
    """The run's folder, links resolved, also where the iteration's is a link to another disk."""
    return Path(os.path.realpath(checkpoint_root(location.folder) or location.root))


def _from_own(config: TrainConfig, origin: Origin, folder: Path) -> Start:
    """The start from the run's own checkpoint `folder`. Lines say where the arguments name one that is not read."""
    recorded = read_run_config(folder) or {}
    root = Path(os.path.realpath(folder.parent))
    start = _going_on(config, replace(origin, resumed_from=recorded.get("resumed_from")), folder)
    lines = []
    for flag, path in (("--resume-from", config.options.resume_from), ("PRETRAIN_CHECKPOINT_PATH", config.load)):
        named = _location(path)
        if named is not None and root_of(named) == root and named.folder.name != folder.name:
            lines.append(
                f"{flag} names an earlier checkpoint of this run, which goes on from its last one, {folder.name}. To go back, "
                f"write {named.iteration} into {root / TRACKER}."
            )
        elif named is not None and flag == "--resume-from":
            _check_began_there(root, root_of(named), recorded.get("resumed_from"))
    return replace(start, lines=tuple(lines))


def _location(path: str | None) -> CheckpointLocation | None:
    """The iteration that `path` means. None if it is gone: then the reader of the arguments has said so."""
    try:
        return resolve_checkpoint(path) if path else None
    except (OSError, UserError):
        return None


def _check_began_there(own: Path, wanted: Path, began: str | None) -> None:
    """Raise where `--resume-from` names a folder that the run `own` did not begin from: it would not be read."""
    began_in = Path(began).parent if began else None
    # The other run's folder may have moved since.
    if wanted == own or (began_in is not None and (wanted == began_in or not began_in.is_dir())):
        return
    raise UserError(
        f"--resume-from names {wanted}, and {own} already holds a run that did not begin there. Remove or rename that folder "
        "to go on from the one you named, or leave the flag out to go on with what it holds."
    )


def _from_other(config: TrainConfig, origin: Origin, location: CheckpointLocation) -> Start:
    """The start from another run's checkpoint, of which everything is taken.

    Raises:
        UserError: that run learns something else.
    """
    found = _compared(config, origin, location)
    if found.hindering:
        raise UserError(
            f"--resume-from names {location.folder}, whose run learns something else: {'; '.join(found.hindering)}. "
            "Write that run's arguments; or name the folder as PRETRAIN_CHECKPOINT_PATH, without the flag, for its weights alone."
        )
    changed = f" with other settings ({'; '.join(found.harmless)})" if found.harmless else ""
    line = f"The run goes on from {location.folder}{changed}, and saves below {config.checkpoint_folder}."
    began = str(root_of(location) / location.folder.name)
    return _going_on(config, replace(origin, resumed_from=began), location.folder, line, *_longer_lines(config, found))


def _longer_lines(config: TrainConfig, found: Comparison) -> list[str]:
    """Sentences about schedule and data when a run is made longer."""
    if not found.longer:
        return []
    order = ""
    if config.task == "pretrain":
        order = " Indexed data comes in the same order only as long as both lengths are within one pass over it."
    curve = config.decay_style
    return [
        f"It becomes longer ({'; '.join(found.longer)}): from here on the learning rate follows a {curve} decay to MIN_LR over "
        f"the new length, above that of the old one.{order}"
    ]


def _from_load(config: TrainConfig, origin: Origin) -> Start:
    """The start from PRETRAIN_CHECKPOINT_PATH.

    A run of this output folder goes on; any other training checkpoint gives its weights alone.
    """
    location = _location(config.load)
    if location is None or location.iteration is None:
        return Start(None, config, origin)
    weights = f"PRETRAIN_CHECKPOINT_PATH {config.load} is a training checkpoint"
    alone = "its weights alone are taken, and training begins at its first iteration"
    if read_run_config(location.folder) is None:
        return Start(None, config, origin, (f"{weights} without run_config.json: {alone}.",))
    found = _compared(config, origin, location)
    is_ours = root_of(location).parent == Path(os.path.realpath(config.checkpoint_folder)).parent
    if (read_run_config(location.folder) or {})["options"].get("save_weights_only") is True:
        return Start(None, config, origin, (f"{weights} that holds weights alone (--save-weights-only): {alone}.",))
    if is_ours and not found.hindering and not found.longer:
        return _from_other(config, origin, location)
    differences = f" ({'; '.join(found.hindering + found.longer)})" if found.hindering or found.longer else ""
    whose = "of another run" if is_ours else "of another output folder"
    flag = f" To go on with its optimizer, schedule and data position, add --resume-from {shlex.quote(str(config.load))}."
    flag = "" if found.hindering else flag
    return Start(None, config, origin, (f"{weights} {whose}{differences}: {alone}.{flag}",))


def _compared(config: TrainConfig, origin: Origin, location: CheckpointLocation) -> Comparison:
    recorded = read_run_config(location.folder)
    assert recorded is not None
    return compare(config, origin, recorded, root_of(location))


def _going_on(config: TrainConfig, origin: Origin, folder: Path, *lines: str) -> Start:
    """The start of a run that goes on: what it began with stays on record, whatever it is started with now."""
    recorded = read_run_config(folder) or {}
    began, known = recorded.get("load"), origin.load_fingerprint
    same = config.load is not None and known and known == recorded.get("load_fingerprint")
    if began is not None and not same:
        config = replace(config, load=began)
        origin = replace(origin, load_fingerprint=str(recorded.get("load_fingerprint") or ""))
    elif began is None and recorded:
        config, origin = replace(config, load=None), replace(origin, load_fingerprint="")
    return Start(folder, config, origin, lines)
