"""Reading the dataset arguments without opening a tensor: prefixes, weighted blends, JSON files. Imports no torch."""

from __future__ import annotations

import functools
import math
import os
import re
from pathlib import Path

from megatron_patch.errors import UserError
from megatron_patch.records.json_records import holds_json

_JSON_SUFFIXES = (".json", ".jsonl")
_MOST_COMMAS = 16  # in one prefix of a blend that is written with commas


def is_json(text: str) -> bool:
    """Whether a dataset argument names JSON data rather than a `.bin`/`.idx` pair: by its ending, or else by its content.

    A prefix of a pair is none, however it ends.
    """
    if os.path.exists(f"{text}.idx") and not os.path.isfile(text):
        return False
    return text.endswith(_JSON_SUFFIXES) or (not os.path.exists(f"{text}.idx") and _holds_json(text))


@functools.lru_cache
def _holds_json(path: str) -> bool:
    """Looked at once: what a run reads does not become something else on the way."""
    return os.path.isfile(path) and holds_json(Path(path))


def parse_data_path(text: str) -> list[tuple[float, str]]:
    """A dataset argument as (weight, prefix) pairs.

    A blend alternates weight and prefix, between spaces (`0.3 A 0.7 B`) or, as the original takes it in one word, between
    commas (`0.3,A,0.7,B`; there prefixes may hold spaces). Anything else is one prefix, with weight 1. A prefix may hold spaces
    and commas itself: an argument whose `.idx` exists as it stands is one prefix, whatever it looks like.

    Raises:
        UserError: a blend without a weight before each prefix, or with a weight that is not above 0.
    """
    pairs = _blend(text)
    if pairs is None:
        return [(1.0, text)]
    if any(weight <= 0 or not math.isfinite(weight) for weight, _ in pairs):
        raise UserError("every weight of a blend must be above 0, and no larger than a double holds.")
    return pairs


def _blend(text: str) -> list[tuple[float, str]] | None:
    """The pairs of a blend; None for one prefix. UserError for words that are neither."""
    words, parts = text.split(), [part.strip() for part in text.split(",")]
    # os.path answers where a blend is too long for a path; pathlib raises.
    if os.path.exists(f"{text}.idx") or len(words) < 2 and len(parts) < 2:
        return None
    mixed = [word for part in parts for word in part.split()]
    readings = [pairs for pairs in (_alternating(words), _between_commas(parts), _alternating(mixed)) if pairs is not None]
    if readings:
        exist = (pairs for pairs in readings if all(os.path.exists(f"{prefix}.idx") for _, prefix in pairs))
        return next(exist, readings[0])
    if mixed and _is_number(mixed[0]):
        wanted = "write a number before each prefix, and no spaces or commas in it that separate words"
        raise UserError(f"a blend is 'weight prefix weight prefix …' or 'weight,prefix,weight,prefix,…': {wanted}.")
    for unweighted in (words, parts):
        if len(unweighted) > 1 and all(os.path.exists(f"{word}.idx") for word in unweighted):
            example = " ".join(f"{1 / len(unweighted):.3g} {word}" for word in unweighted)
            raise UserError(f"these are several prefixes without weights: write '{example}', for example.")
    return None


def _alternating(words: list[str]) -> list[tuple[float, str]] | None:
    if len(words) < 2 or len(words) % 2 or not all(_is_number(word) for word in words[::2]):
        return None
    return [(float(weight), prefix) for weight, prefix in zip(words[::2], words[1::2])]


def _between_commas(parts: list[str]) -> list[tuple[float, str]] | None:
    """Pairs of a text that was split at its commas. A prefix may hold commas where one of that name exists; the shortest does."""
    pairs, begin = [], 0
    while begin < len(parts):
        ends = [end for end in range(begin + 2, min(len(parts), begin + _MOST_COMMAS) + 1) if _may_end(parts, end)]
        there = (end for end in ends if os.path.exists(f"{','.join(parts[begin + 1 : end])}.idx"))
        end = next(there, begin + 2)
        if not _is_number(parts[begin]) or end not in ends:
            return None
        pairs.append((float(parts[begin]), ",".join(parts[begin + 1 : end])))
        begin = end
    return pairs if len(parts) > 1 else None


def _may_end(parts: list[str], end: int) -> bool:
    """Whether a prefix can end before part number `end`: behind it comes a weight or nothing."""
    return end == len(parts) or _is_number(parts[end])


def data_findings(text: str, json_data: bool) -> list[str]:
    """The reasons why a dataset argument cannot be read, one sentence each."""
    if json_data:
        return [] if os.path.isfile(text) else ["there is no such file: write the path of a JSON list or JSON Lines file."]
    try:
        pairs = parse_data_path(text)
    except UserError as error:
        return [str(error)]
    sentences = []
    for _, prefix in pairs:
        if os.path.isfile(prefix) and not os.path.exists(f"{prefix}.idx"):
            sentences.append(_wrong_file(prefix))
            continue
        missing = [suffix for suffix in (".idx", ".bin") if not os.path.isfile(prefix + suffix)]
        if missing:
            files = " and ".join(prefix + suffix for suffix in missing)
            sentences.append(f"there is no {files}: write the path of a .bin/.idx pair without its ending, or a .json file.")
    return sentences


def _wrong_file(path: str) -> str:
    """What to write instead of a file that is neither JSON nor the prefix of a pair."""
    prefix, ending = os.path.splitext(path)
    if ending in (".bin", ".idx"):
        return f"{path} is one file of a pair: write it without its ending, {prefix}."
    wanted = "a JSON list or JSON Lines file, or a .bin/.idx pair without its ending"
    return f"{path} is a file whose content is no JSON: write {wanted}."


def data_bytes(text: str, json_data: bool) -> int:
    """The size of all files of a dataset argument together; 0 where `data_findings` finds something."""
    if data_findings(text, json_data):
        return 0
    files = [text] if json_data else [prefix + suffix for _, prefix in parse_data_path(text) for suffix in (".bin", ".idx")]
    return sum(os.path.getsize(file) for file in files)


def _is_number(word: str) -> bool:
    """Whether a word is written as a weight; Python's float() also takes `1_0`, `nan` and digits of other scripts."""
    return re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", word) is not None
