"""One kind of input: its valid files, the functions that change them, and the function that reads them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from tests.fuzz.mutate import changed_bytes, changed_json


@dataclass
class Target:
    """One kind of input. `files` has for each name the valid bytes and the function that changes them."""

    folder: Path
    read: Callable[[Random], object]
    files: dict[str, tuple[bytes, Callable[[Random, bytes], bytes]]] = field(default_factory=dict)

    def change(self, random: Random) -> dict[str, bytes]:
        """Write the valid files, one of them changed; returns the changed ones by name."""
        name = random.choice(list(self.files))
        content, changer = self.files[name]
        changed = {name: changer(random, content)}
        for path, data in changed.items():
            _write(self.folder / path, data)
        return changed

    def restore(self, names: Any) -> None:
        for name in names:
            _write(self.folder / name, self.files[name][0])


def _write(path: Path, data: bytes) -> None:
    """Write a new file under this name. The old one may be mapped by a reader, which must not see new bytes."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def json_with(*keys: str) -> Callable[[Random, bytes], bytes]:
    return lambda random, data: changed_json(random, json.loads(data), keys)


def text_of(*values: str) -> Callable[[Random, bytes], bytes]:
    def change(random: Random, data: bytes) -> bytes:
        return random.choice(values).encode("utf-8", "surrogatepass") if random.random() < 0.7 else changed_bytes(random, data)

    return change


def files_of(folder: Path, **changers: Callable[[Random, bytes], bytes]) -> dict[str, tuple[bytes, Any]]:
    return {name: ((folder / name).read_bytes(), changer) for name, changer in changers.items()}
