"""Chunks of records → token ids, in this process or in workers."""

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

_IN_FLIGHT = 256 << 20  # bytes of chunks on the way; beyond them no more are read


@dataclass(frozen=True)
class Settings:
    """What the output depends on besides the input's content.

    Attributes:
        tokenizer_folder: folder of the tokenizer's files.
        keys: a record's text is the value of the first of these keys that it has.
        clean: a name in wudao.CLEANERS.
        append_eod: whether an end token follows each document.
        max_document_mb: 10^6 bytes that a line or list item may have; a longer one is bad.
    """

    tokenizer_folder: str
    keys: tuple[str, ...] = ("text", "content")
    clean: str = "none"
    append_eod: bool = True
    max_document_mb: int = MAX_DOCUMENT_MB


@dataclass(frozen=True)
class ChunkResult:
    """What becomes of a chunk.

    Attributes:
        tokens: the ids of its documents end to end, as bytes of `token_dtype`.
        lengths: int32 [documents], ids in each.
        skipped: the records that gave no document.
    """

    tokens: bytes
    lengths: np.ndarray
    skipped: list[Skipped]


def encode_chunk(chunk: Chunk, settings: Settings, tokenizer: Tokenizer) -> ChunkResult:
    """Tokenize a chunk's documents, each followed by an end token if the settings say so."""
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
    """Yield each chunk, without its records, and its result, in order.

    At most two chunks a worker are on the way at a time, fewer if their documents are long. The workers end when this
    generator is exhausted or closed, and when this process has ended, however it ended.

    Raises:
        UserError: a worker was killed.
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


_worker: tuple[Settings, Tokenizer] | None = None  # set in each worker process when it starts


def _start_worker(settings: Settings) -> None:
    """Run once in each worker: watch the main process, and load the tokenizer."""
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _worker = settings, load_tokenizer(settings.tokenizer_folder)


def _end_with_parent() -> None:
    """End this worker when the main process has ended.

    A worker waits on a queue of which it holds both ends, so it would wait for ever. The pipe behind `parent.join` has
    its other end in the main process alone, and every system closes that end when the process ends.
    """
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(chunk: Chunk) -> ChunkResult:
    """`encode_chunk` with the worker's own settings and tokenizer."""
    assert _worker is not None
    return encode_chunk(chunk, *_worker)
