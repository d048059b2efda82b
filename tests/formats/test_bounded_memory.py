"""No file gets more memory than it has bytes: a process with a limit of 500 MB refuses each of them in a sentence."""

from __future__ import annotations

import subprocess
import sys

from tests.formats.memory_worker import PICKLES
from tests.launching import ROOT


def test_files_that_ask_for_more_than_they_are(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "tests.formats.memory_worker", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]
    answers = [line.split(" | ") for line in result.stdout.splitlines()]
    assert len(answers) > len(PICKLES) + 10
    assert [answer for answer in answers if not answer[-1].startswith("refused: ")] == []
