"""Checkpoints that run code under torch's own readers. A check of the names in `.metadata` alone finds none of them."""

from __future__ import annotations

import io
import os
import pickle
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import torch
import zstandard
from torch.distributed.checkpoint.filesystem import _StorageInfo


class Payload:
    """What an attacker wants to run: unpickling it makes a folder, the trace that tests look for."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


def edit_metadata(folder: Path, edit: Callable) -> None:
    """Load `.metadata` as torch does, change it, and write it as torch does."""
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    edit(metadata)
    path.write_bytes(pickle.dumps(metadata))


def saved(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def objects(metadata) -> list:
    return [index for index in metadata.storage_data if index.offset is None]


class _Hiding:
    """Pickles as an OrderedDict of `content` whose attribute `items` returns nothing when it is called."""

    def __init__(self, content: dict) -> None:
        self.content = content

    def __reduce__(self):
        return OrderedDict, (), {"items": OrderedDict}, None, iter(self.content.items())


def hide_behind_an_attribute(folder: Path, trace: Path) -> None:
    """A `storage_data` whose `items` shows nothing, while looking up a key leads to the payload."""
    content = saved([Payload(trace)])
    (folder / "planted.distcp").write_bytes(content)

    def edit(metadata):
        for index in objects(metadata):
            metadata.storage_data[index] = _StorageInfo("planted.distcp", 0, len(content))
        metadata.storage_data = _Hiding(metadata.storage_data)

    edit_metadata(folder, edit)


def hide_behind_a_transform(folder: Path, trace: Path) -> None:
    """A file that torch's reader decompresses: decompressed it is the payload, raw it is harmless."""
    harmless = saved([None])
    skipped = b"\x50\x2a\x4d\x18" + len(harmless).to_bytes(4, "little") + harmless
    content = skipped + zstandard.compress(saved([Payload(trace)]))
    (folder / "planted.distcp").write_bytes(content)

    def edit(metadata):
        for index in objects(metadata):
            metadata.storage_data[index] = _StorageInfo("planted.distcp", 0, len(content), ["stream.zstd/1"])

    edit_metadata(folder, edit)


def plant_common(folder: Path, trace: Path) -> None:
    """Put the payload into common.pt."""
    (folder / "common.pt").write_bytes(saved({"progress": Payload(trace)}))


def misname_progress(folder: Path, trace: Path) -> None:
    """Not an attack: a common.pt whose progress is text instead of numbers."""
    content = torch.load(folder / "common.pt", weights_only=True)
    content["progress"]["iteration"] = "two"
    torch.save(content, folder / "common.pt")


ATTACKS = {
    "attribute": hide_behind_an_attribute,
    "transform": hide_behind_a_transform,
    "common.pt": plant_common,
    "progress": misname_progress,
}
