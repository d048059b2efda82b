"""Inspection's arguments. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from megatron_patch.arguments.command_line import given_texts
from megatron_patch.arguments.findings import Findings
from megatron_patch.arguments.inspection_list import INSPECT


@dataclass(frozen=True)
class Inspection:
    """What is to be looked at and how, a field for each argument of the list. None: not given."""

    path: str
    tokenizer_folder: str | None
    samples: int
    template: str
    seq_length: int
    max_padding_length: int | None


def read(argv: Sequence[str]) -> Inspection:
    """`argv`, checked as far as the files themselves are not needed.

    Raises:
        SystemExit: status 2, after every finding was printed.
    """
    findings = Findings()
    texts = findings.texts(INSPECT, given_texts(INSPECT, argv))
    job = Inspection(**findings.values(INSPECT.all, texts))
    findings.exit_if_any(INSPECT.name)
    return job
