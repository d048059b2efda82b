"""Unpickling with a list of what may be named; everything else is refused before it is looked up.

For the pickles that torch's own `weights_only` loader does not read: torch_dist's `.metadata`, and the descriptions inside
`.distcp` items.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any, BinaryIO


class RestrictedUnpickler(pickle.Unpickler):
    """Resolves only the (module, name) pairs of `allowed`, to the objects given there; imports nothing."""

    def __init__(self, stream: BinaryIO, allowed: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(stream)
        self._allowed = allowed

    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return self._allowed[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it names {module_name}.{global_name}, which no checkpoint needs; it was refused and not run"
            ) from None
