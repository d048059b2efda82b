"""Chunks of records → token ids, here or in worker processes."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from multiprocessing import get_context, parent_process
from typing import Any

import numpy as np

from megatron_patch.data.tokenizer import Tokenizer, load_tokenizer
from megatron_patch.errors import UserError
from megatron_patch.preparation.wudao import CLEANERS
from megatron_patch.records.chunks import Chunk
from megatron_patch.records.indexed import token_dtype
from megatron_patch.records.skipped import MAX_DOCUMENT_MB, Skipped
from megatron_patch.records.texts import texts_of

_IN_FLIGHT = 256 << 20  # bytes of chunks on the way beyond which no more are read


@dataclass(frozen=True)
class Settings:
    """All that the output depends on besides the input's content."""

    tokenizer_folder: str
    keys: tuple[str, ...] = ("text", "content")  # a record's text is the first of these that it has
    clean: str = "none"  # a name in wudao.CLEANERS
    append_eod: bool = True
    max_document_mb: int = MAX_DOCUMENT_MB  # 10^6 bytes of a line or list item; a longer one is bad


@dataclass(frozen=True)
class ChunkResult:
    """What a worker makes of a chunk: token bytes, int32 lengths [documents], and the records that gave no
    document.
    """

    tokens: bytes
    lengths: np.ndarray
    skipped: list[Skipped]


def encode_chunk(chunk: Chunk, settings: Settings, tokenizer: Tokenizer) -> ChunkResult:
    """Tokenize a chunk's documents, each followed by one end token."""
    texts, skipped = texts_of(chunk, settings.keys, CLEANERS[settings.clean])
    end = [tokenizer.eod] if settings.append_eod else []
    ids: list[int] = []
    lengths = []
    for number, text in texts:
        document = tokenizer.tokenize(text)
        if not document:
            skipped.append(Skipped(number, "it has no tokens", empty=True))
            continue
        ids += document + end
        lengths.append(len(document) + len(end))
    tokens = np.array(ids, dtype=token_dtype(tokenizer.vocab_size)).tobytes()
    return ChunkResult(tokens, np.array(lengths, dtype=np.int32), sorted(skipped, key=lambda s: s.number))


def encode_chunks(
    chunks: Iterator[Chunk], settings: Settings, tokenizer: Tokenizer, workers: int
) -> Generator[tuple[Chunk, ChunkResult], None, None]:
    """Each chunk with its result, in order; at most two chunks a worker are on the way, fewer of long documents.

    The workers end when this is exhausted or closed, and when this process is gone, however it went.
    """
    if workers <= 1:
        yield from ((chunk, encode_chunk(chunk, settings, tokenizer)) for chunk in chunks)
        return
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_worker, initargs=(settings,))
    waiting: deque[Any] = deque()
    try:
        for chunk in chunks:
            waiting.append((replace(chunk, records=[]), pool.submit(_work, chunk)))
            while len(waiting) > 2 * workers or sum(chunk.size for chunk, _ in waiting) > _IN_FLIGHT:
                done, future = waiting.popleft()
                yield done, future.result()
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
    except BrokenProcessPool as error:
        raise UserError(
            "a worker process was killed, for lack of memory most likely; run the command again with "
            "fewer --workers, it goes on where it stopped."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


_worker: tuple[Settings, Tokenizer] | None = None  # a worker process's own, set once as it starts


def _start_worker(settings: Settings) -> None:
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker = settings, load_tokenizer(settings.tokenizer_folder)


def _end_with_parent() -> None:
    """End this worker when the main process has ended.

    A worker holds both ends of the queue that it waits on, so it would wait forever. The pipe that this waits on has its
    other end in the main process alone; every system closes it when that process ends.
    """
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(chunk: Chunk) -> ChunkResult:
    assert _worker is not None
    return encode_chunk(chunk, *_worker)
