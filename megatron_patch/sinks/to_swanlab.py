"""A run in SwanLab."""

from __future__ import annotations

import os
import secrets
import string
from collections.abc import Mapping
from typing import Any

import swanlab

from megatron_patch.sinks.tracker import TrackedRun

_MOST = 250  # characters of an experiment's name there
_LETTERS = string.ascii_lowercase + string.digits


class Run:
    """One experiment, known by a name of ours, so that it can be taken up."""

    def __init__(self) -> None:
        self._run: Any = None

    def start(self, run: TrackedRun) -> tuple[str, str]:
        """Begin or go on; in SWANLAB_MODE=offline the files lie below OUTPUT_BASEPATH/swanlog."""
        name = run.known_as or "".join(secrets.choice(_LETTERS) for _ in range(21))
        folder = os.environ.get("SWANLAB_LOG_DIR") or str(run.folder / "swanlog")
        self._run = swanlab.init(
            project=run.project,
            name=run.name[:_MOST],
            id=name,
            resume="allow",
            log_dir=folder,
            config=dict(run.settings),
            # It would read along what is printed, and our log has that.
            settings=swanlab.Settings(terminal=swanlab.Settings.Terminal(proxy_type="none")),
        )
        try:
            return name, self._run.url
        except ValueError:  # SwanLab's for a run without a network, which has none
            return name, folder

    def log(self, values: Mapping[str, float], iteration: int, seconds: float) -> None:
        """Hand the numbers to SwanLab's own thread, which sends them."""
        self._run.log(dict(values), step=iteration)

    def finish(self, failed: bool) -> None:
        """Wait until everything was sent."""
        self._run.finish(**({"state": "crashed"} if failed else {}))
