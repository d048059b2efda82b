"""Evaluation's arguments, checked as far as they can be without reading a tensor. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_patch.arguments.command_line import given_texts
from megatron_patch.arguments.evaluation_list import EVALUATE
from megatron_patch.arguments.findings import Findings
from megatron_patch.arguments.trained_model import JobReading, TrainedModel, TrainedModelReader, what_fits
from megatron_patch.data_paths import IndexedPairs, prefix_of
from megatron_patch.formats.typed import path_problem, unwritable


@dataclass(frozen=True)
class Evaluation:
    """One evaluation. Lengths are tokens.

    Attributes:
        paths: files, and prefixes of pairs.
        batch: sequences of one forward pass.
        stride: from the beginning of a window to the next one's.
    """

    model: TrainedModel
    paths: tuple[str, ...]
    batch: int
    seq_length: int
    pad_length: int
    stride: int
    template: str
    max_bad_fraction: float
    results: Path


def read_evaluation(argv: Sequence[str]) -> JobReading[Evaluation]:
    """`argv` as the script writes it, checked.

    Raises:
        SystemExit: status 2, after every finding was printed.
    """
    findings = Findings()
    texts = findings.texts(EVALUATE, given_texts(EVALUATE, argv))
    value = findings.values(EVALUATE.all, texts, what_fits(texts["load"]))
    reader = TrainedModelReader(EVALUATE, value, findings)
    processes, model = reader.processes(), reader.model()
    seq, stride = value["seq_length"], value["stride"] or max(1, value["seq_length"] // 2)
    if value["max_padding_length"] > seq and not findings.is_about(reader.argument("--seq-length")):
        reader.problem("--max-padding-length", f"it must not be above SEQ_LEN = {seq}: write {seq} or less.")
    if stride > seq:
        reader.problem("--stride", f"it must not be above SEQ_LEN = {seq}, or tokens would be left out: write {seq} or less.")
    paths = [prefix_of(path) or path for path in evaluation_paths(value["data_path"])]
    for path in paths:
        if problem := _path_problem(path):
            reader.findings.add(reader.argument("--data-path"), value["data_path"], problem)
    results = value["results"]
    if Path(results).is_dir():
        reader.problem("--results", "it takes the path of a file: write one.")
    elif problem := unwritable(str(Path(results).parent)):
        reader.problem("--results", problem)
    findings.exit_if_any(EVALUATE.name)
    assert model is not None, "a finding ends the process"
    job = Evaluation(
        model=model,
        paths=tuple(paths),
        batch=value["micro_batch_size"],
        seq_length=seq,
        pad_length=value["max_padding_length"],
        stride=stride,
        template=value["template"],
        max_bad_fraction=value["max_bad_fraction"],
        results=Path(results),
    )
    return JobReading(job, processes, reader.notes())


def evaluation_paths(text: str) -> list[str]:
    """The paths in one argument: itself if it exists, else its parts between commas, or between blanks."""
    if _exists(text):
        return [text]
    for parts in ([part.strip() for part in text.split(",")], text.split()):
        if len(parts) > 1 and all(map(_exists, parts)):
            return parts
    return [part.strip() for part in text.split(",")] if "," in text else text.split() or [text]


def _exists(path: str) -> bool:
    # os.path answers where a text is too long for a path; pathlib raises.
    return os.path.isfile(path) or os.path.isfile(f"{path}.idx")


def _path_problem(path: str) -> str | None:
    if problem := path_problem(path):
        return problem
    if os.path.isfile(f"{path}.idx"):
        return next(iter(IndexedPairs(path, ((1.0, path),)).findings()), None)
    if not os.path.isfile(path):
        return f"there is no {path}: write files, or prefixes of .bin/.idx pairs, between blanks or commas."
    return None
