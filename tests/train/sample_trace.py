"""Which of the project's files hold a sample, or the source that names it, on the way from arguments to the loss.

A profile hook looks at the local variables of every function of the package when it returns or yields. A file counts if
one of them is the data source, its path, the record, its ids, or a batch with them. Two holders do not count: the
configuration, which holds the source, and the rooms that read every argument's text alike before it is parsed.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from megatron_patch.data_paths import IndexedPairs, JsonFiles
from megatron_patch.records.chunks import Chunk
from megatron_patch.records.indexed import IndexedData
from tests.import_graph import PACKAGE, ROOT

_FOLDER = str(ROOT / PACKAGE) + "/"
_READ_ALL_TEXTS = ("arguments/", "formats/")  # a text that is the path counts elsewhere only
_LONGEST = 1000  # items of a list that are looked at


class Trace:
    """The files that held the sample so far, in the order in which it reached them.

    Args:
        prefix: the path that the data argument names.
        word: a word of the watched records; empty for indexed data.
        ids: token numbers that the watched samples have one after the other.
    """

    def __init__(self, prefix: str, word: str, ids: list[int]) -> None:
        self.prefix, self.word, self.ids = prefix, word, ids
        self.found: dict[str, None] = {}

    def __call__(self, frame: FrameType, event: str, value: object) -> None:
        """What Python calls for every call and return."""
        name = frame.f_code.co_filename
        if event != "return" or not name.startswith(_FOLDER) or name in self.found:
            return
        values = (value, *frame.f_locals.values())
        parsed = not name.startswith(tuple(_FOLDER + room for room in _READ_ALL_TEXTS))
        is_path = parsed and any(isinstance(one, (str, Path)) and str(one) == self.prefix for one in values)
        if is_path or any(self.holds(one) for one in values):
            self.found[name] = None

    def holds(self, value: Any, depth: int = 3) -> bool:
        """Whether a value is the source, the sample, or a plain container with one."""
        if isinstance(value, (JsonFiles, IndexedPairs)):
            return value.text == self.prefix
        if isinstance(value, IndexedData):
            return value.prefix == self.prefix
        if isinstance(value, (str, bytes)):
            word = self.word if isinstance(value, str) else self.word.encode()
            return bool(word) and word in value
        if isinstance(value, (np.ndarray, torch.Tensor)):
            return self._has_ids(value)
        if isinstance(value, Chunk):
            return self.holds(value.records, depth)
        if isinstance(value, dict):
            return bool(depth) and any(self.holds(one, depth - 1) for one in value.values())
        if not isinstance(value, (list, tuple)) or not value:
            return False
        if all(type(one) is int for one in value):
            return self._has_ids(np.asarray(value))
        return bool(depth) and any(self.holds(one, depth - 1) for one in value[:_LONGEST])

    def _has_ids(self, values: np.ndarray | torch.Tensor) -> bool:
        """Whether integers hold the watched ids one after the other."""
        if isinstance(values, torch.Tensor):
            if values.is_floating_point() or values.dtype == torch.bool:
                return False
            values = values.detach().cpu().numpy()
        if values.dtype.kind not in "iu" or values.size < len(self.ids):
            return False
        windows = np.lib.stride_tricks.sliding_window_view(values.reshape(-1), len(self.ids))
        return bool((windows == self.ids).all(-1).any())

    @property
    def files(self) -> list[str]:
        """The files' paths inside the package."""
        return [name.removeprefix(_FOLDER) for name in self.found]


@contextmanager
def tracing(trace: Trace) -> Iterator[Trace]:
    """Let `trace` watch this thread."""
    previous: Any = sys.getprofile()
    sys.setprofile(trace)
    try:
        yield trace
    finally:
        sys.setprofile(previous)


def word_ids(folder: Path, word: str) -> list[int]:
    """Token numbers of a word inside a text, without those at its beginning, which depend on what stands before."""
    from megatron_patch.data.tokenizer import load_tokenizer

    return load_tokenizer(folder).tokenize_marked(f"a {word}")[-4:]
