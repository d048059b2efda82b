"""A run in MLflow, on MLFLOW_TRACKING_URI's server; without one in OUTPUT_BASEPATH/mlflow.db."""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient

from megatron_patch.sinks.sink import flat
from megatron_patch.sinks.tracker import TrackedRun

_AT_ONCE = 100  # parameters of one request
_ODD = re.compile(r"[^/\w.\- ]")  # what MLflow refuses in a metric's name
_LONGEST = 6000  # characters of a parameter's value


class Run:
    """One run. Numbers that it computes again after a stop stand there twice."""

    def __init__(self) -> None:
        self._client: Any = None
        self._name = ""
        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells how it makes its tables
        logging.getLogger("alembic").setLevel(logging.WARNING)

    def start(self, run: TrackedRun) -> tuple[str, str]:
        """Begin or go on."""
        server = os.environ.get("MLFLOW_TRACKING_URI")
        where = server or f"sqlite:///{Path(run.folder).absolute() / 'mlflow.db'}"
        self._client = MlflowClient(tracking_uri=where)
        self._name = run.known_as or self._new(run, server is None)
        self._client.update_run(self._name, status="RUNNING")
        self._write_settings({key: _text(value) for key, value in flat(run.settings).items()})
        return self._name, where

    def _new(self, run: TrackedRun, own_file: bool) -> str:
        experiment = self._client.get_experiment_by_name(run.project)
        if experiment is None:
            artifacts = (Path(run.folder).absolute() / "mlartifacts").as_uri() if own_file else None
            number = self._client.create_experiment(run.project, artifact_location=artifacts)
        else:
            number = experiment.experiment_id
        return self._client.create_run(number, run_name=run.name).info.run_id

    def _write_settings(self, settings: Mapping[str, str]) -> None:
        """As parameters, which MLflow never changes. What differs when a run goes on is a tag, `changed …`."""
        known = self._client.get_run(self._name).data.params
        new = [Param(key, value) for key, value in settings.items() if key not in known]
        for first in range(0, len(new), _AT_ONCE):
            self._client.log_batch(self._name, params=new[first : first + _AT_ONCE])
        for key, value in settings.items():
            if known.get(key, value) != value:
                self._client.set_tag(self._name, f"changed {key}", value)

    def log(self, values: Mapping[str, float], iteration: int, seconds: float) -> None:
        """Send the numbers, and wait for the answer."""
        when = int(seconds * 1000)
        named = {_ODD.sub("_", tag): value for tag, value in values.items()}  # a tag may hold the name of a file
        self._client.log_batch(self._name, metrics=[Metric(tag, value, when, iteration) for tag, value in named.items()])

    def finish(self, failed: bool) -> None:
        """Say how the run has ended."""
        self._client.set_terminated(self._name, status="FAILED" if failed else "FINISHED")


def _text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text[:_LONGEST]
