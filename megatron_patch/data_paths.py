"""A dataset argument of training, parsed once: a JSON file, or `.bin`/`.idx` pairs with weights. Imports no torch.

`parse_data` turns the text into a `DataSource`. From there on the run carries that object: the configuration holds it,
and `data/` opens the files that it names. Nothing parses the text a second time.
"""

from __future__ import annotations

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from megatron_patch.errors import UserError
from megatron_patch.records.files import holds_json

_JSON_SUFFIXES = (".json", ".jsonl")
# A prefix inside a comma-separated blend may itself hold up to this many commas. The bound keeps parsing linear.
_MOST_COMMAS = 16

Pair = tuple[float, str]  # (weight, prefix of a `.bin`/`.idx` pair)


@dataclass(frozen=True)
class JsonFile:
    """A JSON list or JSON Lines file, plain or compressed."""

    path: str

    @property
    def text(self) -> str:
        """The argument as it was typed."""
        return self.path

    @property
    def files(self) -> list[str]:
        """Every file that the run reads."""
        return [self.path]

    def findings(self) -> list[str]:
        """Why the file cannot be read, one sentence each; empty if it can."""
        if os.path.isfile(self.path):
            return []
        return ["there is no such file: write the path of a JSON list or JSON Lines file."]


@dataclass(frozen=True)
class IndexedPairs:
    """One `.bin`/`.idx` pair, or a blend of several.

    Attributes:
        text: the argument as it was typed.
        pairs: (weight, prefix) in the order of the argument. Weights are above 0 and need not add up to 1. A single
            pair without a weight has weight 1.
    """

    text: str
    pairs: tuple[Pair, ...]

    @property
    def prefixes(self) -> list[str]:
        """The paths of the pairs, without `.bin` and `.idx`."""
        return [prefix for _, prefix in self.pairs]

    @property
    def files(self) -> list[str]:
        """Every file that the run reads."""
        return [prefix + suffix for prefix in self.prefixes for suffix in (".bin", ".idx")]

    def findings(self) -> list[str]:
        """Why the pairs cannot be read, one sentence each; empty if they can."""
        return [sentence for prefix in self.prefixes for sentence in _pair_findings(prefix)]


DataSource = JsonFile | IndexedPairs
NO_DATA = IndexedPairs("", ())  # of a configuration whose caller feeds the model by itself


def parse_data(text: str, only_json: bool = False) -> DataSource:
    """The source that a dataset argument names.

    The files need not exist; `findings` of the result says what is missing. With `only_json` (fine-tuning) every text
    names a JSON file.

    Raises:
        UserError: the text is a blend without a weight before each prefix, or with a weight that is not above 0.
    """
    if only_json or _is_json(text):
        return JsonFile(text)
    return IndexedPairs(text, tuple(_parse_pairs(text)))


def prefix_of(path: str) -> str | None:
    """The prefix of the pair of which `path` names one file; None where it names none."""
    prefix, ending = os.path.splitext(path)
    named = ending in (".bin", ".idx") and not os.path.exists(f"{path}.idx") and os.path.isfile(f"{prefix}.idx")
    return prefix if named else None


def _is_json(text: str) -> bool:
    """Whether the text names JSON data rather than a pair. Its ending decides; without a known one, the file's content.

    A text whose `.idx` exists is a pair's prefix, however it ends.
    """
    if os.path.exists(f"{text}.idx"):
        return os.path.isfile(text) and text.endswith(_JSON_SUFFIXES)
    return text.endswith(_JSON_SUFFIXES) or (os.path.isfile(text) and holds_json(Path(text)))


def _parse_pairs(text: str) -> list[Pair]:
    """The (weight, prefix) pairs of a text that is not JSON.

    A blend alternates weight and prefix. Spaces separate them (`0.3 A 0.7 B`), or commas, as the original takes a blend
    in one word (`0.3,A,0.7,B`); between commas a prefix may hold spaces. Any other text is one prefix of weight 1. A
    text whose `.idx` exists is one prefix too, so a prefix may hold spaces and commas itself.

    Raises:
        UserError: as `parse_data`.
    """
    pairs = _blend(text)
    if pairs is None:
        return [(1.0, text)]
    if any(weight <= 0 or not math.isfinite(weight) for weight, _ in pairs):
        raise UserError("every weight of a blend must be above 0, and no larger than a double holds.")
    return pairs


def _blend(text: str) -> list[Pair] | None:
    """The pairs of a blend, or None where the text is one prefix.

    Raises:
        UserError: the text begins like a blend and is none, or lists existing prefixes without weights.
    """
    words, parts = text.split(), [part.strip() for part in text.split(",")]
    # os.path.exists returns False for a text that is too long for a path; pathlib would raise.
    if os.path.exists(f"{text}.idx") or len(words) < 2 and len(parts) < 2:
        return None
    mixed = [word for part in parts for word in part.split()]
    readings = [pairs for pairs in (_alternating(words), _between_commas(parts), _alternating(mixed)) if pairs is not None]
    if readings:
        # A text may be readable in several ways. The first one whose files all exist is meant.
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


def _alternating(words: list[str]) -> list[Pair] | None:
    """(weight, prefix) pairs of words that alternate; None where they do not."""
    if len(words) < 2 or len(words) % 2 or not all(_is_number(word) for word in words[::2]):
        return None
    return [(float(weight), prefix) for weight, prefix in zip(words[::2], words[1::2])]


def _between_commas(parts: list[str]) -> list[Pair] | None:
    """The pairs of a text that was split at its commas; None where weights and prefixes do not alternate.

    A prefix may hold commas. Where pairs of several such names exist, the shortest name is taken.
    """
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
    """Whether a prefix can end before part number `end`: a weight follows, or nothing."""
    return end == len(parts) or _is_number(parts[end])


def _is_number(word: str) -> bool:
    """Whether a word is written as a weight. Python's float() also takes `1_0`, `nan` and digits of other scripts."""
    return re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", word) is not None


def _pair_findings(prefix: str) -> list[str]:
    """Why the pair at `prefix` cannot be read, one sentence at most."""
    if os.path.isfile(prefix) and not os.path.exists(f"{prefix}.idx"):
        return [_wrong_file(prefix)]
    missing = " and ".join(prefix + suffix for suffix in (".idx", ".bin") if not os.path.isfile(prefix + suffix))
    if missing:
        return [f"there is no {missing}: write the path of a .bin/.idx pair without its ending, or a .json file."]
    return []


def _wrong_file(path: str) -> str:
    """What to write instead of a file that is neither JSON nor the prefix of a pair."""
    prefix, ending = os.path.splitext(path)
    if ending in (".bin", ".idx"):
        return f"{path} is one file of a pair: write it without its ending, {prefix}."
    wanted = "a JSON list or JSON Lines file, or a .bin/.idx pair without its ending"
    return f"{path} is a file whose content is no JSON: write {wanted}."
