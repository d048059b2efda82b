"""One rank's lines go to console and file, the same bytes to both; other ranks' lines only if they are warnings."""

from __future__ import annotations

import logging

from megatron_patch.train.log import RunLog
from tests.tiny import tiny_config

LINE = " [2026-01-31] iteration 1 | 68.9 % of {it}\n second line |"


def test_the_console_and_the_file_get_the_same_lines(tmp_path, capfd):
    log = RunLog(tiny_config(output_path=str(tmp_path)), active=True)
    log.line(LINE)
    logging.getLogger("megatron_patch.checkpoint.somewhere").warning("100 % full")
    log.close()
    log_file = next(tmp_path.glob("log/tiny_*/train.log"))
    assert capfd.readouterr() == (f"{LINE}\n", "100 % full\n")
    assert log_file.read_text(encoding="utf-8") == f"{LINE}\n100 % full\n"


def test_a_rank_without_the_log_says_nothing(tmp_path, capfd):
    log = RunLog(tiny_config(output_path=str(tmp_path)), active=False)
    log.line(LINE)
    log.close()
    assert capfd.readouterr() == ("", "") and not any(tmp_path.iterdir())
