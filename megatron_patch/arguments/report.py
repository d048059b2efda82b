"""The arguments of `megatron-patch report`. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from megatron_patch.arguments.command_line import given_texts
from megatron_patch.arguments.findings import Findings
from megatron_patch.arguments.report_list import REPORT


@dataclass(frozen=True)
class ReportJob:
    """What is to be read, and which file is to be written."""

    output_basepath: tuple[str, ...]
    output: str
    points: int


def read(argv: Sequence[str]) -> ReportJob:
    """`argv`, checked as far as the runs themselves are not needed.

    Raises:
        SystemExit: status 2, after every finding was printed.
    """
    findings = Findings()
    texts = findings.texts(REPORT, given_texts(REPORT, argv))
    job = ReportJob(**findings.values(REPORT.all, texts))
    if os.path.isdir(job.output):
        findings.add_flag("--output", job.output, f"it is a folder: write {os.path.join(job.output, 'report.html')}.")
    findings.exit_if_any(REPORT.name)
    return job
