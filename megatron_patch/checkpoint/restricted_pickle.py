"""Unpickling with a list of what may be named; everything else is refused before it is looked up.

For the pickles that torch's own `weights_only` loader does not read: torch_dist's `.metadata`, and the descriptions inside
`.distcp` items.
"""

from __future__ import annotations

import enum
import pickle
from collections.abc import Mapping
from typing import Any, BinaryIO


def _enum_member(kind: Any, name: Any) -> enum.Enum:
    """A member of an enumeration by its name; Python 3.11.0 to 3.11.3 pickle members as `getattr(kind, name)`."""
    if not isinstance(kind, enum.EnumMeta) or name not in kind.__members__:
        raise pickle.UnpicklingError("it names builtins.getattr of something else than an enumeration; it was refused")
    return kind[name]


class RestrictedUnpickler(pickle.Unpickler):
    """Resolves only the (module, name) pairs of `allowed`, to the objects given there, and their enumerations' members;

    imports nothing."""

    def __init__(self, stream: BinaryIO, allowed: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(stream)
        self._allowed = allowed

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) == ("builtins", "getattr"):
            return _enum_member
        try:
            return self._allowed[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"it names {module_name}.{global_name}, which no checkpoint needs; it was refused and not run"
            ) from None
