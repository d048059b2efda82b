"""metrics.jsonl: numbers as they were, each line on its own, and what a kill leaves."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys

from megatron_patch.folders.metrics_file import METRICS, MetricsFile, MetricsLines, name_and_date

_KILLED = """
import os, signal, sys
from pathlib import Path
from megatron_patch.folders.metrics_file import MetricsFile
file = MetricsFile(Path(sys.argv[1]))
for number in range(100):
    file.write("training", {"iteration": number, "loss": 1 / 3})
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_numbers_are_exact_and_json(tmp_path):
    file = MetricsFile(tmp_path)
    file.write("training", {"loss": 0.1 + 0.2, "grad_norm": math.inf, "of": {"nan": [math.nan, 1e-320]}, "path": "/\udcff/数据"})
    file.close()
    ((line),) = MetricsLines(tmp_path / METRICS)
    assert (line["loss"], line["grad_norm"], line["of"]) == (0.1 + 0.2, None, {"nan": [None, 1e-320]})
    assert line["path"] == "/\udcff/数据" and (tmp_path / METRICS).read_bytes().isascii()


def test_a_killed_process_leaves_every_line_it_wrote(tmp_path):
    done = subprocess.run([sys.executable, "-c", _KILLED, str(tmp_path)])
    assert done.returncode == -signal.SIGKILL
    assert [line["iteration"] for line in MetricsLines(tmp_path / METRICS)] == list(range(100))


def test_a_torn_line_is_counted_and_the_next_start_is_not_glued_to_it(tmp_path):
    path = tmp_path / METRICS
    file = MetricsFile(tmp_path)
    for number in range(3):
        file.write("training", {"iteration": number})
    file.close()
    os.truncate(path, path.stat().st_size - 5)
    lines = MetricsLines(path)
    assert ([line["iteration"] for line in lines], lines.unreadable) == ([0, 1], 1)
    again = MetricsFile(tmp_path)  # two starts within one second have one folder
    again.write("start", {})
    again.close()
    lines = MetricsLines(path)
    assert ([line["kind"] for line in lines], lines.unreadable) == (["training", "training", "start"], 1)


def test_a_folder_s_name_is_taken_apart():
    assert name_and_date("a_b_2026-01-31-12-00-59") == ("a_b", "2026-01-31-12-00-59")
    assert name_and_date("a_2026-01-31") is None
