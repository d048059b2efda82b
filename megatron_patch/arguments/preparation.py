"""Data preparation's arguments, checked as far as that needs no tokenizer and reads no text. Imports no torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_patch.arguments.command_line import given_texts
from megatron_patch.arguments.findings import Findings
from megatron_patch.arguments.preparation_list import PREPARE
from megatron_patch.errors import UserError
from megatron_patch.folders.checkout import checkout_problem
from megatron_patch.formats.typed import unwritable
from megatron_patch.records.files import find_files
from megatron_patch.records.shards import Shard, parse_shard

_BY_FLAG = {argument.flag: argument for argument in PREPARE.all}


@dataclass(frozen=True)
class Preparation:
    """One preparation. It has a field for each argument of the list, named as the flag; None means not given."""

    input: tuple[str, ...]
    tokenizer: str
    output_dir: str | None
    output_prefix: str | None
    tokenizer_folder: str | None
    sft_output_dir: str | None
    valid_fraction: float
    json_key: tuple[str, ...]
    text_keys: tuple[str, ...]
    clean: str
    workers: int
    shard: Shard | None
    split_by_size: int | None
    tokenizer_engine: str
    max_bad_fraction: float
    max_document_mb: int
    no_append_eod: bool
    overwrite: bool
    megatron_path: str | None
    megatron_patch_path: str | None

    @property
    def prefix(self) -> str | None:
        """The prefix of the pair .bin and .idx; None if no pair is asked for."""
        prefix = self.output_prefix
        if not prefix and self.output_dir:
            prefix = os.path.join(self.output_dir, f"wudao_{self.tokenizer}_text_document")
        return prefix + self.shard.suffix if prefix and self.shard else prefix

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of a record's text: of several parts, or of the first that it has."""
        return self.text_keys or self.json_key

    def shards(self, size: int) -> list[Shard | None]:
        """The parts that are prepared of an input of `size` bytes; None stands for all of it."""
        if self.split_by_size is None:
            return [self.shard]
        count = max(1, -(-size // self.split_by_size))
        return [Shard(number, count) for number in range(1, count + 1)]

    @property
    def prefix_flag(self) -> str:
        """The flag that says where the pair goes."""
        return "--output-dir" if self.output_dir and not self.output_prefix else "--output-prefix"


@dataclass(frozen=True)
class Checked:
    """What was read, and what was found wrong so far. `usable` is False if a path cannot be looked at."""

    job: Preparation
    findings: Findings
    usable: bool

    def add(self, flag: str, got: object, problem: str | None) -> None:
        """Note a finding about a flag, under the name that its user knows, if there is a problem."""
        if problem:
            self.findings.add(_BY_FLAG[flag], got, problem)


def read(argv: Sequence[str]) -> Checked:
    """Read `argv`, as the script writes it or as a user types it behind the command. The caller checks the rest.

    Raises:
        SystemExit: with status 2, if `argv` has unknown flags or lacks the input.
    """
    given = given_texts(PREPARE, argv)
    # Only the script gives MEGATRON_PATCH_PATH.
    findings = Findings(by_flag="megatron_patch_path" not in given.texts)
    texts = findings.texts(PREPARE, given)
    paths = [one for one in PREPARE.all if one.kind in ("path", "paths")]
    known = len(findings.found)
    value = findings.values(paths, texts)
    usable = len(findings.found) == known
    value |= findings.values([one for one in PREPARE.all if one not in paths], texts)
    value["workers"] = value["workers"] or _processors()
    value["text_keys"] = tuple(key for word in value["text_keys"] or () for key in word.split(",") if key)
    value["shard"], problem = _shard(value["shard"])
    checked = Checked(Preparation(**value), findings, usable)
    checked.add("--shard", texts.get("shard", ""), problem)
    if value["shard"] and value["split_by_size"]:
        checked.add("--split-by-size", texts["split_by_size"], "--shard asks for one part of the input: write one of the two.")
    if value["shard"] and value["sft_output_dir"]:
        checked.add("--sft-output-dir", value["sft_output_dir"], "it is not made in parts: write it without --shard.")
    if usable:
        _check_folders(checked)
    return checked


def _check_folders(checked: Checked) -> None:
    job = checked.job
    if job.megatron_patch_path is not None:
        checked.add("--megatron-patch-path", job.megatron_patch_path, checkout_problem(job.megatron_patch_path))
    try:
        find_files(job.input)
    except UserError as error:
        checked.add("--input", " ".join(job.input), str(error))
    if job.prefix and not job.tokenizer_folder:
        checked.add("--tokenizer-folder", "", "a .bin/.idx pair needs a tokenizer: write the folder that holds tokenizer.model.")
    for flag, folder in (("--output-dir", job.output_dir), ("--sft-output-dir", job.sft_output_dir)):
        checked.add(flag, folder, None if folder is None else unwritable(folder))
    if job.output_prefix:
        checked.add("--output-prefix", job.output_prefix, unwritable(Path(job.output_prefix).parent))
    elif not job.output_dir and not job.sft_output_dir:
        checked.add("--output-prefix", "", "one of --output-prefix, --output-dir and --sft-output-dir must be there: write one.")


def _shard(text: str | None) -> tuple[Shard | None, str | None]:
    """The shard that is asked for, and what is wrong with the text."""
    try:
        return (parse_shard(text) if text else None), None
    except UserError as error:
        return None, str(error)


def _processors() -> int:
    """How many processors this process may use. macOS says only how many there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
