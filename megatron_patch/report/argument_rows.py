"""Runs' arguments side by side: a row for each, under the names that the scripts give them. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from megatron_patch.arguments.argument import Argument
from megatron_patch.arguments.training_list import FINETUNE, PRETRAIN
from megatron_patch.language.choice import spoken
from megatron_patch.report.history import History

_LISTED: dict[str, Argument] = {one.dest: one for one in (*FINETUNE.all, *PRETRAIN.all)}
# Fields of a configuration whose argument has another name.
_ARGUMENTS = {
    "recompute": "activation_checkpoint",
    "pad_length": "max_padding_length",
    "train_data_path": "data_path",
}
_NAMES = {"train_data_path": "DATASET_PATH", "name": "NAME"}
# What a label says first, where it differs.
_TELLING = (
    "MODEL_SIZE", "LR", "MIN_LR", "GLOBAL_BATCH_SIZE", "SEQ_LEN", "PAD_LEN", "PR", "EPOCH", "--seed", "DATASET_PATH",
    "BATCH_SIZE", "TP", "PP", "AC", "DO", "FL", "SP",
)  # fmt: skip
_UNTOLD = ("NAME", "OUTPUT_BASEPATH", "task")
GROUPS = ("Arguments", "Flags", "Model", "Software and machine")


@dataclass(frozen=True)
class Row:
    """One argument. `values` has a text for each run; None where the run recorded none."""

    group: str
    name: str
    hint: str
    values: tuple[str | None, ...]

    @property
    def differs(self) -> bool:
        """Whether runs that recorded it differ."""
        return len({value for value in self.values if value is not None}) > 1


def argument_rows(runs: Sequence[History]) -> list[Row]:
    """Every argument that one of the runs recorded, by group, in the order in which the runs recorded them."""
    found = [dict(recorded(run.opening)) for run in runs]
    keys = list(dict.fromkeys(key for one in found for key in one))
    rows = [Row(group, name, _hint(name), tuple(one.get((group, name)) for one in found)) for group, name in keys]
    return sorted(rows, key=lambda row: GROUPS.index(row.group))


def recorded(opening: Mapping[str, Any]) -> Iterator[tuple[tuple[str, str], str]]:
    """((group, name), value) of everything that a start's first line says of its arguments and of what runs it."""
    arguments = opening.get("arguments")
    for field, value in arguments.items() if isinstance(arguments, dict) else ():
        if field == "options" and isinstance(value, dict):
            yield from ((("Flags", f"--{one.replace('_', '-')}"), text_of(worth)) for one, worth in value.items())
        elif field == "model" and isinstance(value, dict):
            yield from ((("Model", one), text_of(worth)) for one, worth in value.items())
        else:
            yield ("Arguments", name_of(field)), text_of(value)
    for part in ("versions", "machine"):
        values = opening.get(part)
        if isinstance(values, dict):
            yield from ((("Software and machine", name), text_of(value)) for name, value in values.items())


def name_of(field: str) -> str:
    """A configuration's field as the scripts name it, micro_batch_size as BATCH_SIZE; else the field itself."""
    listed = _LISTED.get(_ARGUMENTS.get(field, field))
    return _NAMES.get(field) or (listed.name if listed else field)


def text_of(value: Any) -> str:
    """A recorded value as text: `none` for None, true and false as the scripts write them."""
    if value is None or value == "":
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _hint(name: str) -> str:
    listed = next((one for one in _LISTED.values() if one.name == name), None)
    return "" if listed is None else listed.zh if spoken() == "zh" else listed.en


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What a start recorded otherwise than the one before it: `TP 1 → 2`."""
    old, new = dict(recorded(before)), dict(recorded(now))
    return [f"{key[1]} {old[key]} → {value}" for key, value in new.items() if key in old and old[key] != value] if old else []


def labels(runs: Sequence[History], rows: Sequence[Row]) -> list[str]:
    """A short name for each run: its task and what of its arguments differs from the others'; no two are the same."""
    found = [_task(run) for run in runs]
    for row in sorted(filter(_is_telling, rows), key=_rank):
        longer = [f"{label} · {row.name.lstrip('-')} {_end(value)}" for label, value in zip(found, row.values)]
        if len(set(longer)) > len(set(found)):  # an argument that tells no more of them apart is left to the table
            found = longer
    for more in (lambda run: run.base.name, lambda run: run.name, lambda run: str(run.base)):
        if len(set(found)) == len(found):
            break
        found = [f"{label} · {more(run)}" if found.count(label) > 1 else label for label, run in zip(found, runs)]
    return found


def _is_telling(row: Row) -> bool:
    return row.differs and row.name not in _UNTOLD and row.group in ("Arguments", "Flags")


def _rank(row: Row) -> int:
    return _TELLING.index(row.name) if row.name in _TELLING else len(_TELLING)


def _end(value: str | None) -> str:
    """The last part of a path; other values whole, cut where they are long."""
    end = "?" if value is None else value.rstrip("/").rpartition("/")[2]
    return end if len(end) <= 32 else f"{end[:31]}…"


def _task(run: History) -> str:
    arguments = run.opening.get("arguments")
    task = arguments.get("task") if isinstance(arguments, dict) else None
    guessed = "finetune" if "finetune" in run.name else "pretrain" if "pretrain" in run.name else run.name
    return task if isinstance(task, str) else guessed
