"""Reading the dataset arguments without opening a tensor: prefixes, weighted blends, JSON files. Imports no torch."""

from __future__ import annotations

import functools
import math
import os
from pathlib import Path

from megatron_patch.data.records import holds_json

_JSON_SUFFIXES = (".json", ".jsonl")


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

    One prefix, which may hold spaces, stands alone with weight 1; otherwise the words alternate: weight, prefix, weight,
    prefix. An argument whose `.idx` exists as it stands is one prefix, whatever it looks like.

    Raises:
        ValueError: words that are neither.
    """
    words = text.split()
    # os.path answers where a blend is too long for a path; pathlib raises.
    if os.path.exists(f"{text}.idx") or len(words) < 2 or not _is_number(words[0]):
        return [(1.0, text)]
    if len(words) % 2 or not all(_is_number(word) for word in words[::2]):
        raise ValueError("a blend is 'weight prefix weight prefix …': write a number before each prefix, without spaces in it.")
    weights = [float(word) for word in words[::2]]
    if any(weight <= 0 or not math.isfinite(weight) for weight in weights):
        raise ValueError("every weight of a blend must be above 0.")
    return list(zip(weights, words[1::2]))


def data_findings(text: str, json_data: bool) -> list[str]:
    """What keeps a dataset argument from being read, one sentence each."""
    if json_data:
        return [] if os.path.isfile(text) else ["there is no such file: write the path of a JSON list or JSON Lines file."]
    try:
        pairs = parse_data_path(text)
    except ValueError as error:
        return [str(error)]
    sentences = []
    for _, prefix in pairs:
        missing = [suffix for suffix in (".idx", ".bin") if not os.path.isfile(prefix + suffix)]
        if missing:
            files = " and ".join(prefix + suffix for suffix in missing)
            sentences.append(f"there is no {files}: write the path of a .bin/.idx pair without its ending, or a .json file.")
    return sentences


def data_bytes(text: str, json_data: bool) -> int:
    """The size of all files of a dataset argument together; 0 where `data_findings` finds something."""
    if data_findings(text, json_data):
        return 0
    files = [text] if json_data else [prefix + suffix for _, prefix in parse_data_path(text) for suffix in (".bin", ".idx")]
    return sum(os.path.getsize(file) for file in files)


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True
