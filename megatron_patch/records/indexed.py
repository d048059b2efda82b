r"""Megatron's indexed data: `PREFIX.bin` holds the token ids end to end, `PREFIX.idx` tells where each document lies.

The `.idx` file, little-endian (format: NVIDIA Megatron-LM, `indexed_dataset.py`):

| field | type |
|---|---|
| magic `MMIDIDX\0\0` | 9 bytes |
| version, 1 | uint64 |
| type code of the ids (4 int32, 8 uint16) | uint8 |
| number of sequences n | uint64 |
| number of document boundaries d | uint64 |
| length of each sequence, in ids | int32 [n] |
| byte offset of each sequence in the `.bin` | int64 [n] |
| sequence at which each document begins, and n at the end | int64 [d] |

This project writes one sequence a document, so d = n + 1.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from megatron_patch.errors import UserError

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
_CODES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
_BLOCK = 1 << 20  # documents read or written at a time
_SAMPLED_DOCUMENTS = 64
_SAMPLED_TOKENS = 4096


@dataclass(frozen=True)
class IndexedData:
    """A checked pair.

    Attributes:
        prefix: its path without `.bin` and `.idx`.
        dtype: of the ids in the `.bin`.
        lengths: int32 [n], ids in each sequence; a memory map.
        offsets: int64 [n], byte at which each sequence begins in the `.bin`; a memory map.
        boundaries: d, see the module's docstring.
    """

    prefix: str
    dtype: np.dtype
    lengths: np.ndarray
    offsets: np.ndarray
    boundaries: int

    @property
    def tokens(self) -> int:
        """Number of ids in the `.bin`, by the `.idx`."""
        return (int(self.offsets[-1]) // self.dtype.itemsize + int(self.lengths[-1])) if len(self.lengths) else 0

    def document(self, i: int, limit: int | None = None) -> np.ndarray:
        """The first `limit` ids of sequence i (all without a limit), as an array of `dtype`."""
        count = int(self.lengths[i]) if limit is None else min(limit, int(self.lengths[i]))
        return np.fromfile(f"{self.prefix}.bin", dtype=self.dtype, count=count, offset=int(self.offsets[i]))


def token_dtype(vocab_size: int) -> np.dtype:
    """The type of ids in a new `.bin`: uint16 below 65500 ids, else int32. This is Megatron's rule."""
    return np.dtype(np.uint16 if vocab_size < 65500 else np.int32)


def write_index(file: BinaryIO, lengths: np.ndarray, dtype: np.dtype) -> None:
    """Write the `.idx` for documents of one sequence each.

    Args:
        lengths: int32 [n], ids in each document. It is read in blocks, so it may be a memory map larger than the
            memory.
        dtype: of the ids in the `.bin`.
    """
    code = next(code for code, kind in _CODES.items() if np.dtype(kind) == dtype)
    n = len(lengths)
    file.write(_HEADER.pack(_MAGIC, 1, code, n, n + 1))
    for i in range(0, n, _BLOCK):
        file.write(np.ascontiguousarray(lengths[i : i + _BLOCK], dtype="<i4").tobytes())
    offset = 0
    for i in range(0, n, _BLOCK):
        ends = offset + np.cumsum(lengths[i : i + _BLOCK], dtype=np.int64) * dtype.itemsize
        file.write(np.concatenate([[offset], ends[:-1]]).astype("<i8").tobytes())
        offset = int(ends[-1])
    for i in range(0, n + 1, _BLOCK):
        file.write(np.arange(i, min(n + 1, i + _BLOCK), dtype="<i8").tobytes())


def read_index(prefix: str | Path) -> IndexedData:
    """Open the pair at `prefix` and check its form, sizes and places. Ids are not read.

    Takes a second for 100 million documents.

    Raises:
        UserError: a file is missing, has another format, or is cut short or damaged; or the `.bin` is not as long as
            the `.idx` says.
    """
    prefix = str(prefix)
    missing = [prefix + end for end in (".bin", ".idx") if not Path(prefix + end).is_file()]
    if missing:
        raise UserError(f"there is no {' and no '.join(missing)}; give the path of a .bin/.idx pair without its ending.")
    idx = Path(prefix + ".idx")
    with open(idx, "rb") as file:
        head = file.read(_HEADER.size)
    if head[:6] in (b"TNTIDX", b"\x80\x04\x95"):
        raise UserError(f"{idx} is of an older format (lazy or cached); prepare the data again, as mmap.")
    if len(head) < _HEADER.size or head[:9] != _MAGIC:
        raise UserError(f"{idx} is no Megatron index (it begins with {head[:9]!r}); prepare the data again.")
    _, version, code, n, boundaries = _HEADER.unpack(head)
    if version != 1 or code not in _CODES:
        raise UserError(f"{idx} has version {version} and type code {code}; read are version 1, codes {list(_CODES)}.")
    size, wanted = idx.stat().st_size, _HEADER.size + 12 * n + 8 * boundaries
    if size not in (wanted, wanted + n):  # multimodal indices end with one byte a sequence
        raise UserError(f"{idx} has {size} bytes, its header promises {wanted}; copy it again, it was cut short or mixed up.")
    lengths = np.memmap(idx, dtype="<i4", mode="r", offset=_HEADER.size, shape=(n,)) if n else np.empty(0, np.int32)
    offsets = np.memmap(idx, dtype="<i8", mode="r", offset=_HEADER.size + 4 * n, shape=(n,)) if n else np.empty(0, np.int64)
    data = IndexedData(prefix, np.dtype(_CODES[code]), lengths, offsets, boundaries)
    _check_places(idx, data)
    _check_sizes(data)
    return data


def _check_places(idx: Path, data: IndexedData) -> None:
    """Check lengths, offsets and boundaries against each other. Reads 20 bytes a document, at 2 GB/s.

    Raises:
        UserError: the sequences do not lie end to end, as every writer of this format lays them; or the boundaries do
            not rise from 0 to the number of sequences.
    """
    n, offset = len(data.lengths), 0
    for i in range(0, n, _BLOCK):
        lengths, offsets = data.lengths[i : i + _BLOCK], data.offsets[i : i + _BLOCK]
        if lengths.min() < 0:
            raise _damaged(idx, f"sequence {i + int(np.argmin(lengths))} has length {lengths.min()}")
        ends = offset + np.cumsum(lengths, dtype=np.int64) * data.dtype.itemsize
        wrong = np.flatnonzero(np.concatenate([[offset], ends[:-1]]) != offsets)
        if wrong.size:
            begins = f"sequence {i + wrong[0]} is said to begin at byte {offsets[wrong[0]]}"
            raise _damaged(idx, f"{begins}, not where the one before it ends")
        offset = int(ends[-1])
    before, beginning = 0, _HEADER.size + 12 * n
    for i in range(0, data.boundaries, _BLOCK):
        count = min(_BLOCK, data.boundaries - i)
        starts = np.fromfile(idx, dtype="<i8", count=count, offset=beginning + 8 * i)
        if (i == 0 and starts[0] != 0) or starts[0] < before or (np.diff(starts) < 0).any() or starts[-1] > n:
            raise _damaged(idx, f"the beginnings of documents do not rise from 0 to {n}")
        before = int(starts[-1])
    if before != n or data.boundaries < 1:
        raise _damaged(idx, f"the last document ends with sequence {before} of {n}")


def _damaged(idx: Path, what: str) -> UserError:
    """The error for an `.idx` whose parts do not fit each other."""
    return UserError(f"{idx} is damaged: {what}; copy the pair again, or prepare the data again.")


def lengths_fingerprint(prefixes: Iterable[str | Path]) -> str:
    """32 hex digits that identify the documents' lengths of these pairs, in this order.

    Only the lengths decide where core's samples begin and end. Ids, file times and paths do not. Reads 4 bytes a
    document, at 2 GB/s.

    Raises:
        UserError: as `read_index`.
    """
    digest = hashlib.sha256()
    for prefix in prefixes:
        lengths = read_index(prefix).lengths
        digest.update(struct.pack("<Q", len(lengths)))
        for i in range(0, len(lengths), _BLOCK):
            digest.update(lengths[i : i + _BLOCK].data)
    return digest.hexdigest()[:32]


def _check_sizes(data: IndexedData) -> None:
    """Check the `.bin`'s size against the `.idx`.

    Raises:
        UserError: the sizes differ, or there is no token.
    """
    has, wants = Path(data.prefix + ".bin").stat().st_size, data.tokens * data.dtype.itemsize
    if has != wants:
        how = "shorter" if has < wants else "longer"
        raise UserError(
            f"{data.prefix}.bin has {has} bytes, {how} than the {wants} bytes ({data.tokens} tokens) of its .idx; "
            "copy the pair again, or prepare the data again."
        )
    if not data.tokens:
        raise UserError(f"{data.prefix}.idx lists no tokens; prepare the data again from an input that holds text.")


def check_indexed_dataset(prefix: str | Path, vocab_size: int) -> IndexedData:
    """Open the pair as `read_index` does, and check ids of some documents against the vocabulary.

    Reads up to 64 documents, evenly spread from the first to the last, 4096 ids of each. That takes milliseconds.

    Raises:
        UserError: an id lies outside [0, vocab_size), with its document and place; or as `read_index`.
    """
    data = read_index(prefix)
    count = min(_SAMPLED_DOCUMENTS, len(data.lengths))
    for i in np.unique(np.linspace(0, len(data.lengths) - 1, count).astype(np.int64)):
        ids = data.document(int(i), _SAMPLED_TOKENS)
        wrong = np.flatnonzero((ids < 0) | (ids >= vocab_size))
        if wrong.size:
            raise UserError(
                f"{data.prefix}.bin: document {i}, token {wrong[0]} has id {ids[wrong[0]]}, outside the vocabulary of "
                f"{vocab_size}; the data was made with another tokenizer: prepare it again with this model's."
            )
    return data
