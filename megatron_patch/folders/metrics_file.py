"""`log/NAME_DATE/metrics.jsonl`: what a start of a run did, a JSON object a line. docs/report.md lists the keys.

Imports no torch.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

METRICS = "metrics.jsonl"
FORMAT = 1  # of the lines; a start's first line has it
_FOLDER = re.compile(r"(.+)_([0-9]{4}(?:-[0-9]{2}){5})", re.DOTALL)


def started_folder(name: str, when: datetime.datetime) -> str:
    """NAME_DATE: the folder of one start in log/ and in tensorboard/."""
    return f"{name}_{when:%Y-%m-%d-%H-%M-%S}"


def name_and_date(folder: str) -> tuple[str, str] | None:
    """NAME and DATE of such a folder's name; None for another name."""
    match = _FOLDER.fullmatch(folder)
    return (match[1], match[2]) if match else None


class MetricsFile:
    """Appends lines. Each is handed to the system before the next, so a kill tears the last one at most.

    Raises:
        OSError: the disk is full, for example; the run then ends instead of going on without its record.
    """

    def __init__(self, folder: Path) -> None:
        path = folder / METRICS
        before = path.read_bytes() if path.is_file() else b""  # two starts within one second share a folder
        self.stream = open(path, "ab")  # noqa: SIM115  `close` closes it
        if before and not before.endswith(b"\n"):
            self.stream.write(b"\n")

    def write(self, kind: str, values: Mapping[str, object]) -> None:
        """Append a line of this kind, with the time. Numbers that are not finite become null: JSON has none."""
        now = datetime.datetime.now().astimezone().isoformat(timespec="milliseconds")
        line = json.dumps({"kind": kind, "time": now, **_finite(dict(values))}, allow_nan=False)
        self.stream.write(line.encode("ascii") + b"\n")
        self.stream.flush()

    def close(self) -> None:
        """Wait until the lines are on the disk, and close the file."""
        os.fsync(self.stream.fileno())
        self.stream.close()


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    return [_finite(one) for one in value] if isinstance(value, (list, tuple)) else value


class MetricsLines:
    """The lines of one file, each as its object. `unreadable` counts those that are none, as the walk goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.unreadable = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        with open(self.path, "rb") as stream:
            for line in stream:
                try:
                    found = json.loads(line)
                except (ValueError, RecursionError):
                    found = None
                if isinstance(found, dict) and isinstance(found.get("kind"), str):
                    yield found
                else:
                    self.unreadable += 1
