"""Programs that keep the curves of many runs, mostly on a server: what each must do here, and which ones there are."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from megatron_patch.config import Options


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker is told of a run.

    Attributes:
        project: the project, or the experiment, in which the tracker keeps it.
        name: NAME.
        folder: OUTPUT_BASEPATH, for what the tracker writes on the disk.
        settings: the configuration as plain values, nested.
        known_as: the tracker's name of the run where it goes on; None for a new one.
    """

    project: str
    name: str
    folder: Path
    settings: Mapping[str, Any]
    known_as: str | None


class Tracker(Protocol):
    """One library. Every method may raise whatever the library raises."""

    def start(self, run: TrackedRun) -> tuple[str, str]:
        """Begin a run, or go on with one. Returns (its name for the tracker, where people find it)."""

    def log(self, values: Mapping[str, float], iteration: int, seconds: float) -> None:
        """Take numbers of an iteration. `seconds` is the time since 1970 at which they were known."""

    def finish(self, failed: bool) -> None:
        """End the run, and send what has not been sent."""


@dataclass(frozen=True)
class Kind:
    """A tracker that can be asked for.

    Attributes:
        option: the field of Options that names its project.
        library: the module to import; pyproject's extra has the same name.
        title: as people call it.
        hint: what to do where it cannot begin a run.
    """

    option: str
    library: str
    title: str
    hint: str

    @property
    def flag(self) -> str:
        """The flag of its project."""
        return "--" + self.option.replace("_", "-")

    @property
    def is_installed(self) -> bool:
        """Whether its library can be imported. A folder of its name in the working directory is no library."""
        found = importlib.util.find_spec(self.library)
        return found is not None and found.origin is not None

    def make(self) -> Tracker:
        """Its tracker; imports the library."""
        module = importlib.import_module(f"megatron_patch.sinks.to_{self.library}")
        return module.Run()


KINDS = (
    Kind("wandb_project", "wandb", "Weights & Biases", "run `wandb login`, or set WANDB_MODE=offline"),
    Kind("swanlab_project", "swanlab", "SwanLab", "run `swanlab login`, or set SWANLAB_MODE=offline"),
    Kind("mlflow_experiment", "mlflow", "MLflow", "look at MLFLOW_TRACKING_URI"),
)


def asked_for(options: Options) -> Iterator[tuple[Kind, str]]:
    """Each tracker that the flags name, and the project."""
    for kind in KINDS:
        if project := getattr(options, kind.option):
            yield kind, project


def missing_libraries(options: Options) -> Iterator[tuple[str, str, str]]:
    """(flag, project, what to do) for each tracker whose library is not installed."""
    for kind, project in asked_for(options):
        if not kind.is_installed:
            wanted = f"{kind.library} is not installed: run pip install 'megatron-patch[{kind.library}]', or remove the flag."
            yield kind.flag, project, wanted
