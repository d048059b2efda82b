"""merge-data's arguments. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_patch.arguments.command_line import given_texts
from megatron_patch.arguments.findings import Findings
from megatron_patch.arguments.merge_list import MERGE
from megatron_patch.formats.typed import unwritable


@dataclass(frozen=True)
class Merge:
    """What is joined into what, a field for each argument of the list."""

    prefix: tuple[str, ...]
    output_prefix: str
    overwrite: bool


def read(argv: Sequence[str]) -> Merge:
    """`argv`, checked as far as the files themselves are not needed.

    Raises:
        SystemExit: status 2, after every finding was printed.
    """
    findings = Findings()
    texts = findings.texts(MERGE, given_texts(MERGE, argv))
    value = findings.values(MERGE.all, texts)
    if output := value["output_prefix"]:
        problem = unwritable(Path(output).parent)
        if problem:
            findings.add(MERGE.flags[0], output, problem)
    findings.exit_if_any(MERGE.name)
    return Merge(prefix=tuple(map(_without_ending, value["prefix"])), output_prefix=output, overwrite=value["overwrite"])


def _without_ending(path: str) -> str:
    """A pair's prefix, of which its user may have written a file."""
    ending = next((ending for ending in (".bin", ".idx", ".made") if path.endswith(ending)), "")
    return path.removesuffix(ending)
