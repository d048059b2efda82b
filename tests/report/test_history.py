"""What becomes one run's history: which start's numbers count, and what thinning keeps."""

from __future__ import annotations

import random
from array import array

import numpy as np
import pytest

from megatron_patch.errors import UserError
from megatron_patch.report.reading import read_runs
from megatron_patch.report.thinning import bin_edges, binned
from tests.report.made_runs import opening, training, write_start
from tests.tiny import tiny_config


def start(base, config, after, first, last, loss, *events):
    """A start that did iterations first + 1 to `last`, each with this loss."""
    resumed = [("resume", {"iteration": first})] if first else []
    lines = [training(config, iteration, iteration - first, loss=loss) for iteration in range(first + 1, last + 1)]
    return write_start(base, config, after, [opening(config), *resumed, *lines, *events])


def test_a_later_start_replaces_what_it_repeats_and_what_lay_behind_it(tmp_path):
    config = tiny_config(name="run")
    save = [("save", {"iteration": place, "seconds": 1.0, "bytes": 8}) for place in (4, 8)]
    valid = [("validation", {**training(config, place, 0)[1], "loss": 9.0}) for place in (4, 8)]
    start(tmp_path, config, 0, 0, 10, 1.0, *save, *valid)
    start(tmp_path, config, 100, 4, 6, 2.0)  # died before it came as far as the first
    start(tmp_path, config, 200, 6, 6, 0.0)  # died before its first line: it replaces nothing
    start(tmp_path, config, 300, 5, 7, 3.0)
    (run,), notes = read_runs([str(tmp_path)])
    assert run.training["iteration"].tolist() == [1, 2, 3, 4, 5, 6, 7] and not notes
    assert run.training["loss"].tolist() == [1, 1, 1, 1, 2, 3, 3]
    assert (run.repeated, [one["iteration"] for one in run.saves]) == ([0, 6, 0, 1], [4])
    assert run.validation[""]["iteration"].tolist() == [4]
    hours = run.training["hours"].tolist()
    assert hours == sorted(hours) and hours[-1] * 3600 == pytest.approx(10 + 2 + 0 + 2)


def test_a_torn_line_is_said_and_the_rest_is_read(tmp_path):
    path = start(tmp_path, tiny_config(name="run"), 0, 0, 3, 1.0)
    path.write_bytes(path.read_bytes()[:-9])
    (run,), (note,) = read_runs([str(tmp_path)])
    assert run.training["iteration"].tolist() == [1, 2]
    assert str(path) in note and note.endswith("unreadable lines, such as one that a kill tore: 1.")


@pytest.mark.parametrize(
    "line",
    [
        '{"kind": "training", "iteration": null}', '{"kind": "training", "iteration": "1"}', '{"kind": 1}', "[]", "1" * 5000,
        "[" * 100_000, '{"kind": "training", "iteration": 1e999}', '{"kind": "training", "iteration": true, "time": []}',
    ],
)  # fmt: skip
def test_lines_of_another_form_are_no_numbers(tmp_path, line):
    path = start(tmp_path, tiny_config(name="run"), 0, 0, 2, 1.0, ("stop", {"reason": ["odd"]}), ("save", {"iteration": "x"}))
    path.write_text(path.read_text() + line + "\n")
    (run,), (note,) = read_runs([str(tmp_path)])
    assert run.training["iteration"].tolist() == [1, 2] and note.endswith("tore: 1.")


def test_thinning_loses_no_spike():
    draw = random.Random(1)
    values = array("d", (draw.gauss(2, 0.1) for _ in range(100_000)))
    for place, value in ((7, 40.1), (50_001, 41.2), (99_999, 42.3)):
        values[place] = value
    values[123] = float("nan")
    edges = bin_edges(len(values), 2000)
    found = binned(values, edges)
    assert len(found["mean"]) == 2000 and edges[-1] == len(values)
    assert [one for one in found["most"] if one > 30] == [40.1, 41.2, 42.3]
    assert min(found["least"]) == pytest.approx(np.nanmin(values), rel=1e-5)
    whole = np.average(found["mean"], weights=np.diff(edges))
    assert whole == pytest.approx(np.nanmean(values), rel=1e-4)
    short = binned(values[:50], bin_edges(50, 2000))
    assert list(short) == ["mean"] and short["mean"] == pytest.approx(values[:50].tolist(), rel=1e-5)
    assert binned(array("d", [float("nan")]), [0, 1]) is None


def test_a_path_means_an_output_or_one_of_its_runs(tmp_path):
    for name in ("one", "two"):
        start(tmp_path, tiny_config(name=name), 0, 0, 2, 1.0)
    (tmp_path / "checkpoint" / "two").mkdir(parents=True)
    names = lambda *paths: [run.name for run in read_runs([str(tmp_path / path) for path in paths])[0]]  # noqa: E731
    assert names(".") == names(".", "log/..") == ["one", "two"]
    assert names("checkpoint/two") == names("log/two_2026-01-31-09-00-00") == ["two"]
    for path, said in (("log", "holds no run"), ("absent", "There is no folder"), ("checkpoint", "holds no run")):
        with pytest.raises(UserError, match=said):
            names(path)
