"""What trackers have written without a network, read with their own formats: run → tag → iteration → value."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

_HEADER, _BLOCK = 7, 32768  # bytes, of LevelDB's log format, which both wandb and SwanLab write

Curves = dict[str, dict[str, dict[int, float]]]


def records(path: Path) -> Iterator[bytes]:
    """The records of a log file of LevelDB's, behind the tracker's own header of as many bytes as one of LevelDB's."""
    data, place, whole = path.read_bytes(), _HEADER, b""
    while place + _HEADER <= len(data):
        left = _BLOCK - place % _BLOCK
        if left < _HEADER:
            place += left
            continue
        _, length, kind = struct.unpack("<IHB", data[place : place + _HEADER])
        whole += data[place + _HEADER : place + _HEADER + length]
        place += _HEADER + length
        if kind in (1, 4):  # a record in one piece, or the last piece of one
            yield whole
            whole = b""


def wandb(output: Path) -> Curves:
    """Of OUTPUT_BASEPATH/wandb."""
    import wandb as library
    from wandb.proto.wandb_internal_pb2 import Record

    library.teardown()  # its process may still be writing a run that has been finished
    found: Curves = {}
    for path in sorted(output.glob("wandb/offline-run-*/run-*.wandb")):
        curves = found.setdefault(path.stem.removeprefix("run-"), {})
        for record in map(Record.FromString, records(path)):
            items = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item}
            for tag, value in items.items():
                curves.setdefault(tag, {})[items["iteration"]] = value
    return found


def swanlab(output: Path) -> Curves:
    """Of OUTPUT_BASEPATH/swanlog."""
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record

    found: Curves = {}
    for path in sorted(output.glob("swanlog/run-*/run-*.swanlab")):
        curves = found.setdefault(path.stem.removeprefix("run-"), {})
        for record in map(Record.FromString, records(path)):
            if record.HasField("scalar"):
                curves.setdefault(record.scalar.key, {})[record.scalar.step] = record.scalar.value.number
    return found


def mlflow(output: Path) -> Curves:
    """Of OUTPUT_BASEPATH/mlflow.db."""
    from mlflow.tracking import MlflowClient

    client, found = MlflowClient(tracking_uri=f"sqlite:///{output / 'mlflow.db'}"), {}
    numbers = [experiment.experiment_id for experiment in client.search_experiments()]
    for run in client.search_runs(numbers):
        curves = found[run.info.run_id] = {}
        for tag in run.data.metrics:
            curves[tag] = {one.step: one.value for one in client.get_metric_history(run.info.run_id, tag)}
    return found
