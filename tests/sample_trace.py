"""Which of the project's files hold a sample, or the path to it, while a run goes from its arguments to the loss.

A profile hook looks at the local variables of every function of the package when it returns or yields. A file counts if one of
them is the data's path, the record, its ids, or a batch with them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from tests.import_graph import PACKAGE, ROOT

_FOLDER = str(ROOT / PACKAGE) + "/"


class Trace:
    """The files met so far, in the order in which the sample reached them.

    Args:
        path: the data argument.
        word: text that the watched record has and no other.
        ids: token numbers that the watched sample has one after the other, and no other.
    """

    def __init__(self, path: str, word: str, ids: list[int]) -> None:
        self.path, self.word, self.ids = path, word, ids
        self.files: dict[str, None] = {}

    def __call__(self, frame: FrameType, event: str, value: object) -> None:
        name = frame.f_code.co_filename
        if event != "return" or not name.startswith(_FOLDER) or name in self.files:
            return
        if any(self.holds(one) for one in (value, *frame.f_locals.values())):
            self.files[name] = None

    def holds(self, value: Any, depth: int = 3) -> bool:
        """Whether a value is the sample, or a plain container with it."""
        if isinstance(value, str):
            return value in (self.path, f"{self.path}.bin", f"{self.path}.idx") or (bool(self.word) and self.word in value)
        if isinstance(value, Path):
            return str(value) == self.path
        if isinstance(value, bytes):
            return bool(self.word) and self.word.encode() in value
        if isinstance(value, (np.ndarray, torch.Tensor)):
            return self._has_ids(value)
        if isinstance(value, list) and value and all(isinstance(one, int) for one in value):
            return self._has_ids(np.asarray(value))
        if type(value).__name__ in ("JsonFile", "IndexedPairs", "Chunk", "IndexedData"):
            return self.holds(vars(value), depth)
        if depth and isinstance(value, dict):
            return any(self.holds(one, depth - 1) for one in value.values())
        return bool(depth) and isinstance(value, (list, tuple)) and any(self.holds(one, depth - 1) for one in value[:1000])

    def _has_ids(self, values: Any) -> bool:
        """Whether integers hold the watched ids one after the other."""
        if isinstance(values, torch.Tensor):
            if values.is_floating_point() or values.dtype == torch.bool:
                return False
            values = values.detach().numpy()
        if values.dtype.kind not in "iu" or values.size < len(self.ids) or values.ndim == 0:
            return False
        windows = np.lib.stride_tricks.sliding_window_view(values.reshape(-1), len(self.ids))
        return bool((windows == self.ids).all(-1).any())

    def names(self) -> list[str]:
        """The files' paths inside the package."""
        return [name.removeprefix(_FOLDER) for name in self.files]


@contextmanager
def tracing(trace: Trace) -> Iterator[None]:
    """Let `trace` watch this thread."""
    previous: Callable | None = sys.getprofile()
    sys.setprofile(trace)
    try:
        yield
    finally:
        sys.setprofile(previous)
