"""Tokenized samples of a JSON file, written once into one file and then memory-mapped by every process.

The file's name is a hash of everything that its content depends on: the data file's bytes, the tokenizer, the template,
the end token, the version of the prompts, and the version of this format. Lengths, padding, packing and the parallel
layout come later, so they are not part of it.

Tokens are written as they are encoded, so memory does not grow with the file, but for 8 bytes a sample.

Layout, little-endian:

| part | size |
|---|---|
| header: one line of JSON, filled with spaces; `crc` is the crc32 of what follows | 4096 bytes |
| tokens int32 [tokens], bit 30 set if the token is learnt | 4 bytes each, filled with zeros to a multiple of 8 |
| offsets int64 [samples + 1] | 8 bytes each |
| account, a JSON object in UTF-8 | as many bytes as the header says |
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import re
import socket
import zlib
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from megatron_patch.data.prompts import Encoded
from megatron_patch.errors import UserError, naming
from megatron_patch.formats.json_files import one_line, whole_in

_LOGGER = logging.getLogger(__name__)

FORMAT = "megatron_patch tokens 3"
_HEADER = 4096
_LEARNT = np.int32(1 << 30)
_BUFFER = 1 << 20
_TEMPORARY = re.compile(r"(tokens-[0-9a-f]+\.bin)\.(.+)\.([0-9]{1,9})\.tmp")  # table, host, process
Check = Callable[[dict[str, Any]], object]


@dataclass(frozen=True)
class TokenTable:
    """Samples end to end.

    Attributes:
        offsets: int64 [n + 1]; sample i is `flat[offsets[i] : offsets[i + 1]]`.
        flat: int32 [tokens]; bit 30 marks a learnt token.
        account: JSON values that the table's maker wants to know again.
    """

    offsets: np.ndarray
    flat: np.ndarray
    account: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def sample(self, i: int, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """Sample i, cut to `limit` tokens: ids int64 [n], and bool [n], whether each is learnt."""
        begin = self.offsets[i]
        values = np.asarray(self.flat[begin : min(self.offsets[i + 1], begin + limit)])
        return (values & ~_LEARNT).astype(np.int64), (values & _LEARNT) != 0

    def learnt_counts(self, limit: int, block: int = 4096) -> np.ndarray:
        """int64 [n]: how many tokens of each sample are learnt, if it is cut to `limit`.

        A sample's first token does not count, since no token predicts it. Works on `block` samples at a time, because
        `flat` may be larger than the memory.
        """
        counts = np.zeros(len(self), dtype=np.int64)
        for first in range(0, len(self), block):
            edges = self.offsets[first : first + block + 1]
            values = self.flat[edges[0] : edges[-1]]
            sums = np.concatenate([[0], np.cumsum((values & _LEARNT) != 0)])
            begins, ends = edges[:-1] - edges[0], np.minimum(edges[1:], edges[:-1] + limit) - edges[0]
            counts[first : first + block] = sums[np.maximum(ends, begins)] - sums[np.minimum(begins + 1, ends)]
        return counts


@dataclass(frozen=True)
class Encoding:
    """Samples of a file that is being encoded, and behind the last of them the account."""

    samples: Iterator[Encoded]
    account: Callable[[], dict[str, Any]] = dict


def make_table(encoding: Encoding) -> TokenTable:
    """Put encoded samples end to end in memory, 4 bytes a token."""
    offsets, flat = array("q", [0]), bytearray()
    for sample in encoding.samples:
        flat += _marked(sample).tobytes()
        offsets.append(len(flat) // 4)
    return TokenTable(np.frombuffer(offsets, np.int64), np.frombuffer(flat, np.int32), encoding.account())


def _marked(sample: Encoded) -> np.ndarray:
    """int32 [tokens]: a sample's ids, with bit 30 where they are learnt."""
    ids, learnt = sample
    return np.asarray(ids, dtype=np.int32) | np.where(learnt, _LEARNT, np.int32(0)).astype(np.int32)


def table_path(folder: str | Path, data: Path, settings: dict[str, str]) -> Path:
    """Where in `folder` the table of the file `data` belongs. `settings`: what else its content depends on."""
    return Path(folder) / f"tokens-{_key(data, settings)}.bin"


def cached_at(path: Path, build: Callable[[], Encoding], check: Check = lambda account: None) -> TokenTable:
    """The table at `path`, a place that `table_path` gave. If it is not there, what `build` gives is written there.

    Of several processes that share the folder one builds while the others wait for its lock. The finished file appears
    by one rename. So processes without a common lock (another node, a file system without locks) at worst build it
    twice. A damaged file is built again, and a warning says so. What processes of this host left unfinished when they
    were killed is removed.

    Args:
        check: raises UserError for an account that its maker cannot have written. The file is damaged then, whatever
            its checksum.

    Raises:
        UserError: the file cannot be read back after it was written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with _lock(path.with_suffix(".lock")) as is_alone:
        table = _load(path, check)
        if table is None:
            _remove_left_over(path, is_alone)
            _save(path, build())
            table = _load(path, check)
    if table is None:
        raise UserError(f"{path} cannot be read back after writing; check the disk, or choose another cache folder.")
    return table


def _key(data: Path, settings: dict[str, str]) -> str:
    """The hash in a table's name."""
    with open(data, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 22):
            digest.update(block)
    parts = json.dumps([FORMAT, digest.hexdigest(), settings], sort_keys=True)
    return hashlib.sha256(parts.encode()).hexdigest()[:32]


def _load(path: Path, check: Check) -> TokenTable | None:
    """The table at `path`; None if there is no such file, or if it is damaged, which a warning says."""
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
    """The table in a cache file.

    Raises:
        ValueError, KeyError, TypeError, RecursionError: it is damaged, whatever its checksum says.
    """
    with open(path, "rb") as file:
        header = json.loads(file.read(_HEADER))
    samples, tokens, noted = (whole_in(header, name, 0, 1 << 40) for name in ("samples", "tokens", "account"))
    begin, end = _filled(4 * tokens), _filled(4 * tokens) + 8 * (samples + 1)
    if header["format"] != FORMAT or path.stat().st_size != _HEADER + end + noted:
        raise UserError("its size or format is wrong")
    body = np.memmap(path, dtype=np.uint8, mode="r", offset=_HEADER)
    if zlib.crc32(body.data) != header["crc"]:
        raise UserError("its checksum is wrong")
    account = json.loads(body[end:].tobytes())
    if not isinstance(account, dict):
        raise UserError("its account is no object")
    table = TokenTable(body[begin:end].view(np.int64), body[: 4 * tokens].view(np.int32), account)
    offsets = table.offsets
    if offsets[0] != 0 or offsets[-1] != tokens or (np.diff(offsets) < 1).any():
        raise UserError("its samples do not lie end to end")
    return table


def _filled(size: int) -> int:
    """Bytes of the tokens with the zeros behind them, so that offsets begin at a multiple of 8."""
    return -(-size // 8) * 8


def _save(path: Path, encoding: Encoding) -> None:
    """Write the table under a name of this process's own, flush it, and rename it."""
    temporary = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")
    try:
        with naming(path.parent), open(temporary, "wb", _BUFFER) as file:
            file.write(b" " * _HEADER)
            header = _write_body(file, encoding)
            file.seek(0)
            file.write(json.dumps(header).encode().ljust(_HEADER - 1) + b"\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _write_body(file: BinaryIO, encoding: Encoding) -> dict[str, Any]:
    """Write what stands behind the header, and return the header's content."""
    offsets, crc = array("q", [0]), 0

    def put(data: memoryview | bytes) -> None:
        nonlocal crc
        file.write(data)
        crc = zlib.crc32(data, crc)

    for sample in encoding.samples:
        values = _marked(sample)
        put(values.data)
        offsets.append(offsets[-1] + len(values))
    size = 4 * offsets[-1]
    put(bytes(_filled(size) - size))
    put(memoryview(offsets))
    account = json.dumps(encoding.account()).encode()
    put(account)
    return {"format": FORMAT, "samples": len(offsets) - 1, "tokens": offsets[-1], "account": len(account), "crc": crc}


def _remove_left_over(path: Path, is_alone: bool) -> None:
    """Remove what killed processes of this host have left of the table at `path`, and of others that nobody makes now.

    is_alone: whether this process holds the lock of `path`. Whoever writes a table holds its lock.
    """
    for found in path.parent.glob("tokens-*.tmp"):
        match = _TEMPORARY.fullmatch(found.name)
        if match is None or match[2] != socket.gethostname() or _lives(int(match[3])):
            continue
        if match[1] == path.name:
            if is_alone:
                found.unlink(missing_ok=True)
            continue
        with _lock(path.with_name(match[1]).with_suffix(".lock"), waits=False) as is_free:
            if is_free:
                found.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    """Whether there is another process with this number."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return pid != os.getpid()


@contextmanager
def _lock(path: Path, waits: bool = True) -> Iterator[bool]:
    """Hold a file lock, which ends with the process that holds it. Gives whether it is held.

    It is not where another process holds it and this one does not wait, or on a file system without locks, which a
    warning says.
    """
    with open(path, "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX if waits else fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        except BlockingIOError:
            held = False
        except OSError as error:
            _LOGGER.warning(f"{path.parent} has no file locks ({error}); several processes may tokenize the same file.")
            held = False
        yield held
