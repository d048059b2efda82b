"""What of a run's numbers and events stands in which line of metrics.jsonl, and how the report reads it."""

from __future__ import annotations

import math

import pytest

from megatron_patch.folders.metrics_file import METRICS
from megatron_patch.folders.metrics_file import MetricsLines as Lines
from megatron_patch.report.start import read_start
from megatron_patch.sinks.metrics_lines import MetricsSink
from megatron_patch.sinks.sink import RunStart
from tests.tiny import tiny_config


@pytest.fixture
def sink(tmp_path):
    made = MetricsSink(tmp_path, tiny_config(), {"torch": "2.12"}, {"processes": 4})
    made.began(RunStart(made._config, tmp_path, 10, 20, 40, 4))
    yield made
    made.close()


def test_each_validation_file_has_a_line_with_its_name(sink, tmp_path):
    for name, loss in (("a.json", 1.0), ("b/c.json", 2.0)):
        values = {f"lm loss validation/{name}": loss, f"lm loss validation ppl/{name}": math.exp(loss)}
        sink.numbers(values, 12, 24)
    sink.numbers({"lm loss validation": 1.5, "lm loss validation ppl": math.exp(1.5)}, 12, 24)
    start = read_start("date", tmp_path / METRICS)
    assert {name: list(table["loss"]) for name, table in start.validation.items()} == {"a.json": [1], "b/c.json": [2], "": [1.5]}
    assert start.first == 10 and start.opening["machine"] == {"processes": 4}


def test_skipped_iterations_are_events_and_are_counted_since_the_last_line(sink, tmp_path):
    for iteration in (11, 12):
        sink.event("skipped", {"iteration": iteration, "why": "overflow", "loss_scale": 2.0**16})
    sink.numbers({"grad-norm": math.inf, "batch-size": 2.0, "a new/tag": 3.0}, 12, 24)
    sink.numbers({"lm loss": 2.5}, 13, 26)
    *_, skipped, first, second = Lines(tmp_path / METRICS)
    assert (skipped["kind"], skipped["iteration"], skipped["why"]) == ("skipped", 12, "overflow")
    assert (first["skipped_iterations"], first["nan_iterations"], first["loss"], first["grad_norm"]) == (2, 0, None, None)
    assert first["global_batch_size"] == 2 and isinstance(first["global_batch_size"], int)
    assert (second["skipped_iterations"], second["loss"], second["consumed_tokens"]) == (0, 2.5, 26 * 16)
    assert read_start("date", tmp_path / METRICS).skipped == [11, 12]
