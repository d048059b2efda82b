"""Tokenized fine-tuning samples in one file: written once, then memory-mapped by every process.

A cache file's name is a hash of everything that its content depends on: the data file's bytes, the
tokenizer's, the template, the end token, the version of the prompts, and this format's. Lengths, padding, packing
and the parallel layout come later and are not part of it.

Layout, little-endian: one line of JSON (format, samples, tokens, account, crc32 of what follows the header) filled
with spaces to 4096 bytes; offsets int64 [samples + 1]; tokens int32 [tokens], bit 30 set where a token is
learnt; the account, a JSON object in as many bytes of UTF-8 as the header says.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import socket
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from megatron_patch.data.prompts import Encoded
from megatron_patch.errors import UserError
from megatron_patch.formats.json_files import one_line, whole_in

_LOGGER = logging.getLogger(__name__)

FORMAT = "megatron_patch tokens 2"
_HEADER = 4096
_LEARNT = np.int32(1 << 30)
Check = Callable[[dict[str, Any]], object]


@dataclass(frozen=True)
class TokenTable:
    """Samples end to end. `offsets` int64 [n + 1]; `flat` int32 [tokens], with bit 30 as the mark of a learnt
    token; `account`: what whoever made it wants to know again of the file, JSON values.
    """

    offsets: np.ndarray
    flat: np.ndarray
    account: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def sample(self, i: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """ids int64 [n] and learnt bool [n] of sample i, n at most `limit`."""
        begin = self.offsets[i]
        values = np.asarray(self.flat[begin : min(self.offsets[i + 1], begin + limit)])
        return (values & ~_LEARNT).astype(np.int64), (values & _LEARNT) != 0

    def learnt_counts(self, limit: int, block: int = 4096) -> np.ndarray:
        """int64 [n]: how many tokens after the first of each sample, cut to `limit`, are learnt. In blocks of
        samples.
        """
        counts = np.zeros(len(self), dtype=np.int64)
        for first in range(0, len(self), block):
            edges = self.offsets[first : first + block + 1]
            values = self.flat[edges[0] : edges[-1]]
            sums = np.concatenate([[0], np.cumsum((values & _LEARNT) != 0)])
            begins, ends = edges[:-1] - edges[0], np.minimum(edges[1:], edges[:-1] + limit) - edges[0]
            counts[first : first + block] = sums[np.maximum(ends, begins)] - sums[np.minimum(begins + 1, ends)]
        return counts


def make_table(samples: Iterator[Encoded]) -> TokenTable:
    """Gather encoded samples."""
    lengths, parts = [0], []
    for ids, learnt in samples:
        parts.append(np.asarray(ids, dtype=np.int32) | np.where(learnt, _LEARNT, np.int32(0)).astype(np.int32))
        lengths.append(len(ids))
    flat = np.concatenate(parts) if parts else np.empty(0, dtype=np.int32)
    return TokenTable(np.cumsum(lengths, dtype=np.int64), flat)


def table_path(folder: str | Path, data: Path, settings: dict[str, str]) -> Path:
    """Where in `folder` the table of `data` under `settings` belongs."""
    return Path(folder) / f"tokens-{_key(data, settings)}.bin"


def cached_at(path: Path, build: Callable[[], TokenTable], check: Check = lambda account: None) -> TokenTable:
    """The table at `path`, a place that `table_path` gave: if it is not there, it is built, written and then read.

    Of several processes that share the folder one builds while the others wait for its lock. The finished file appears by one
    rename, so processes without a common lock (another node, a file system without locks) at worst build it twice. A damaged
    file is rebuilt, and a line on standard error says so.

    `check` raises UserError for an account that its maker cannot have written: then the file is damaged, whatever its checksum.

    Raises:
        UserError: the file cannot be read back after it was written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path.with_suffix(".lock")):
        table = _load(path, check)
        if table is None:
            _save(path, build())
            table = _load(path, check)
    if table is None:
        raise UserError(f"{path} cannot be read back after writing; check the disk, or choose another cache folder.")
    return table


def _key(data: Path, settings: dict[str, str]) -> str:
    with open(data, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
    parts = json.dumps([FORMAT, digest.hexdigest(), settings], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()[:32]


def _load(path: Path, check: Check) -> TokenTable | None:
    """The table, or None where there is no such file, or (with a sentence) a damaged one."""
    if not path.exists():
        return None
    try:
        table = _read_table(path)
        check(table.account)
        return table
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        _LOGGER.warning(f"the token cache {path} is damaged ({one_line(error)}); it is made again.")
        return None


def _read_table(path: Path) -> TokenTable:
    """The table in a cache file. ValueError, KeyError, TypeError or RecursionError where it is damaged, whatever its checksum."""
    with open(path, "rb") as file:
        header = json.loads(file.read(_HEADER))
    samples, tokens, noted = (whole_in(header, name, 0, 1 << 40) for name in ("samples", "tokens", "account"))
    begin, end = 8 * (samples + 1), 8 * (samples + 1) + 4 * tokens
    if header["format"] != FORMAT or path.stat().st_size != _HEADER + end + noted:
        raise UserError("its size or format is wrong")
    body = np.memmap(path, dtype=np.uint8, mode="r", offset=_HEADER)
    if zlib.crc32(body.data) != header["crc"]:
        raise UserError("its checksum is wrong")
    account = json.loads(body[end:].tobytes())
    if not isinstance(account, dict):
        raise UserError("its account is no object")
    table = TokenTable(body[:begin].view(np.int64), body[begin:end].view(np.int32), account)
    offsets = table.offsets
    if offsets[0] != 0 or offsets[-1] != tokens or (np.diff(offsets) < 1).any():
        raise UserError("its samples do not lie end to end")
    return table


def _save(path: Path, table: TokenTable) -> None:
    offsets, flat = np.ascontiguousarray(table.offsets), np.ascontiguousarray(table.flat)
    account = json.dumps(table.account).encode()
    crc = zlib.crc32(account, zlib.crc32(flat.data, zlib.crc32(offsets.data)))
    numbers = {"samples": len(table), "tokens": int(flat.size), "account": len(account), "crc": crc}
    header = json.dumps({"format": FORMAT, **numbers})
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(header.encode().ljust(_HEADER - 1) + b"\n")
            file.write(offsets.tobytes())
            file.write(flat.tobytes())
            file.write(account)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a file lock, which ends with the process that holds it; where the file system has none, go on
    without.
    """
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            _LOGGER.warning(f"{path.parent} has no file locks ({error}); several processes may tokenize the same file.")
        yield
