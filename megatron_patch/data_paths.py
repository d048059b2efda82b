"""A dataset argument of training, parsed once: JSON files, or `.bin`/`.idx` pairs, with weights. Imports no torch.

`parse_data` turns the text into a `DataSource`. From there on the run carries that object: the configuration holds it,
and `data/` opens the files that it names. Nothing parses the text a second time.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from megatron_patch.errors import UserError
from megatron_patch.records.files import SUFFIXES, holds_json

# A path inside a comma-separated blend may itself hold up to this many commas. The bound keeps parsing linear.
_MOST_COMMAS = 16

Pair = tuple[float, str]  # (weight, JSON file or prefix of a `.bin`/`.idx` pair)


@dataclass(frozen=True)
class JsonFiles:
    """JSON list or JSON Lines files, plain or compressed: mostly one.

    Attributes:
        text: the argument as it was typed.
        paths: the files, in the order of the argument.
        weights: of each file, above 0; they need not add up to 1. Empty for one file, and for several that are taken
            whole, one behind the other.
    """

    text: str
    paths: tuple[str, ...]
    weights: tuple[float, ...] = ()

    @property
    def files(self) -> list[str]:
        """Every file that the run reads."""
        return list(self.paths)

    def findings(self) -> list[str]:
        """Why the files cannot be read, one sentence each; empty if they can."""
        missing = [path for path in dict.fromkeys(self.paths) if not os.path.isfile(path)]
        if len(self.paths) == 1 and missing:
            return ["there is no such file: write the path of a JSON list or JSON Lines file."]
        return [f"there is no {path}: write the paths of JSON list or JSON Lines files." for path in missing]


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


DataSource = JsonFiles | IndexedPairs
NO_DATA = IndexedPairs("", ())  # of a configuration whose caller feeds the model by itself


def parse_data(text: str, only_json: bool = False) -> DataSource:
    """The source that a dataset argument names.

    Several paths stand in one text with a weight before each. Spaces separate weights and paths (`0.3 A 0.7 B`), or
    commas, as the original takes a blend in one word (`0.3,A,0.7,B`); between commas a path may hold spaces. JSON files
    may be several without weights too. Any other text is one path, and so is one that exists as it stands: a path may
    hold spaces and commas itself. The files need not exist; `findings` of the result says what is missing. With
    `only_json` (fine-tuning) every path names a JSON file.

    Raises:
        UserError: the text is a blend without a weight before each path, or with a weight that is not above 0; or it
            names pairs without weights, or pairs and JSON files.
    """
    exists = os.path.isfile if only_json else _is_there
    pairs = _blend(text, exists, only_json)
    paths = [path for _, path in pairs] if pairs else _listed(text, exists)
    is_json = [only_json or _is_json(path) for path in paths]
    if all(is_json):
        weights = tuple(weight for weight, _ in pairs) if pairs and len(pairs) > 1 else ()
        return JsonFiles(text, tuple(paths), weights)
    if any(is_json):
        raise UserError("it names JSON files and .bin/.idx pairs: write paths of one kind.")
    if pairs is None and len(paths) > 1:
        example = " ".join(f"{1 / len(paths):.3g} {path}" for path in paths)
        raise UserError(f"these are several prefixes without weights: write '{example}', for example.")
    return IndexedPairs(text, tuple(pairs or [(1.0, text)]))


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
        return os.path.isfile(text) and text.endswith(SUFFIXES)
    return text.endswith(SUFFIXES) or (os.path.isfile(text) and holds_json(Path(text)))


def _is_there(path: str) -> bool:
    """Whether a pair or a file is at `path`. os.path says no where a text is too long for one; pathlib would raise."""
    return os.path.exists(f"{path}.idx") or os.path.isfile(path)


def _listed(text: str, exists: Callable[[str], bool]) -> list[str]:
    """The paths of a text without weights: several if each exists or is named as JSON is, else the text itself."""
    words, parts = text.split(), [part.strip() for part in text.split(",")]
    for paths in () if exists(text) else (words, parts, [word for part in parts for word in part.split()]):
        if len(paths) > 1 and all(exists(path) or path.endswith(SUFFIXES) for path in paths):
            return paths
    return [text]


def _blend(text: str, exists: Callable[[str], bool], only_json: bool) -> list[Pair] | None:
    """The pairs of a blend, or None where the text has no weights.

    Raises:
        UserError: the text begins like a blend and is none, or a weight is not possible.
    """
    words, parts = text.split(), [part.strip() for part in text.split(",")]
    if exists(text) or len(words) < 2 and len(parts) < 2:
        return None
    mixed = [word for part in parts for word in part.split()]
    readings = [pairs for pairs in (_alternating(words), _between_commas(parts, exists), _alternating(mixed)) if pairs]
    if not readings and mixed and _is_number(mixed[0]):
        raise UserError(_no_blend(only_json))
    if not readings:
        return None
    # A text may be readable in several ways. The first one whose files all exist is meant.
    pairs = next((pairs for pairs in readings if all(exists(path) for _, path in pairs)), readings[0])
    if any(weight <= 0 or not math.isfinite(weight) for weight, _ in pairs):
        raise UserError("every weight of a blend must be above 0, and no larger than a double holds.")
    return pairs


def _no_blend(only_json: bool) -> str:
    if only_json:
        wanted = "write a number before each file, and no spaces or commas in it that separate words"
        return f"several files with weights are 'weight file weight file …' or 'weight,file,weight,file,…': {wanted}."
    wanted = "write a number before each prefix, and no spaces or commas in it that separate words"
    return f"a blend is 'weight prefix weight prefix …' or 'weight,prefix,weight,prefix,…': {wanted}."


def _alternating(words: list[str]) -> list[Pair] | None:
    """(weight, path) pairs of words that alternate; None where they do not."""
    if len(words) < 2 or len(words) % 2 or not all(_is_number(word) for word in words[::2]):
        return None
    return [(float(weight), path) for weight, path in zip(words[::2], words[1::2])]


def _between_commas(parts: list[str], exists: Callable[[str], bool]) -> list[Pair] | None:
    """The pairs of a text that was split at its commas; None where weights and paths do not alternate.

    A path may hold commas. Where several such paths exist, the shortest is taken.
    """
    pairs, begin = [], 0
    while begin < len(parts):
        ends = [end for end in range(begin + 2, min(len(parts), begin + _MOST_COMMAS) + 1) if _may_end(parts, end)]
        there = (end for end in ends if exists(",".join(parts[begin + 1 : end])))
        end = next(there, begin + 2)
        if not _is_number(parts[begin]) or end not in ends:
            return None
        pairs.append((float(parts[begin]), ",".join(parts[begin + 1 : end])))
        begin = end
    return pairs if len(parts) > 1 else None


def _may_end(parts: list[str], end: int) -> bool:
    """Whether a path can end before part number `end`: a weight follows, or nothing."""
    return end == len(parts) or _is_number(parts[end])


def _is_number(word: str) -> bool:
    """Whether a word is written as a weight. Python's float() also takes `1_0`, `nan` and digits of other scripts."""
    # The pattern takes quadratic time, so a long word is looked at no further.
    return len(word) <= 40 and re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?", word) is not None


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
