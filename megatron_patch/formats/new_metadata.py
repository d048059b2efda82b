"""The `.metadata` of a torch_dist folder that this program has written."""

from __future__ import annotations

import pickle
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch.distributed.checkpoint import metadata as dcp
    from torch.distributed.checkpoint.filesystem import _StorageInfo

_DCP_VERSION = "1.0.0"  # what torch writes into .metadata


@dataclass(frozen=True)
class Span:
    """Bytes of a file: its name, the first byte, how many."""

    file: str
    start: int
    length: int

    def as_info(self) -> _StorageInfo:
        """torch's form."""
        from torch.distributed.checkpoint.filesystem import _StorageInfo

        return _StorageInfo(self.file, self.start, self.length)


@dataclass(frozen=True)
class Chunk:
    """A rectangle of a tensor, and where it lies.

    Attributes:
        key: the whole tensor's name.
        whole: the whole tensor's shape.
        offset: where the rectangle begins in it, for each axis.
        shape: the rectangle's.
    """

    key: str
    whole: tuple[int, ...]
    offset: tuple[int, ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    span: Span


def metadata_file(chunks: Iterable[Chunk], objects: Mapping[str, Span]) -> bytes:
    """What `.metadata` holds: the shape and chunks of each key, and where each chunk and object lies.

    Args:
        chunks: of all tensors; those of one key cover it once.
        objects: key → place of what is no tensor.
    """
    from torch.distributed.checkpoint import metadata as dcp  # it takes more than a second

    by_key: dict[str, list[Chunk]] = defaultdict(list)
    for chunk in chunks:
        by_key[chunk.key].append(chunk)
    entries: dict[str, dcp.TensorStorageMetadata | dcp.BytesStorageMetadata] = {}
    storage = {}
    for key, parts in by_key.items():
        entries[key] = _entry(parts)
        for part in parts:
            storage[dcp.MetadataIndex(key, part.offset)] = part.span.as_info()
    for key, span in objects.items():
        entries[key] = dcp.BytesStorageMetadata()
        storage[dcp.MetadataIndex(key)] = span.as_info()
    found = dcp.Metadata(state_dict_metadata=entries, storage_data=storage, storage_meta=dcp.StorageMeta(), version=_DCP_VERSION)
    return pickle.dumps(found)


def _entry(parts: list[Chunk]) -> dcp.TensorStorageMetadata:
    """Dtype, whole shape and chunks of one key."""
    from torch.distributed.checkpoint import metadata as dcp

    return dcp.TensorStorageMetadata(
        properties=dcp.TensorProperties(dtype=parts[0].dtype),
        size=torch.Size(parts[0].whole),
        chunks=[dcp.ChunkStorageMetadata(offsets=torch.Size(part.offset), sizes=torch.Size(part.shape)) for part in parts],
    )
