"""Chunks of records → token ids, in this process or in workers."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing import get_context, parent_process

import numpy as np

from megatron_patch.data.compared_engine import Engine, is_compared
from megatron_patch.data.fast_engine import NoFastEngineError, fast_tokenizer
from megatron_patch.data.tokenizer import load_tokenizer
from megatron_patch.errors import UserError
from megatron_patch.preparation.token_slots import Slot, TokenSlots
from megatron_patch.preparation.wudao import CLEANERS
from megatron_patch.records.chunks import Chunk
from megatron_patch.records.indexed import token_dtype
from megatron_patch.records.skipped import MAX_DOCUMENT_MB, Skipped
from megatron_patch.records.texts import texts_of

_IN_FLIGHT = 256 << 20  # bytes of chunks on the way; beyond them no more are read
_ON_THE_WAY = 2  # chunks a worker


@dataclass(frozen=True)
class Settings:
    """What the output depends on besides the input's content.

    Attributes:
        tokenizer_folder: folder of the tokenizer's files.
        keys: a record's text is the value of the first of these keys that it has.
        clean: a name in wudao.CLEANERS.
        append_eod: whether an end token follows each document.
        max_document_mb: 10^6 bytes that a line or list item may have; a longer one is bad.
        joined: a record's text is made of the values of all keys, a line end between them.
    """

    tokenizer_folder: str
    keys: tuple[str, ...] = ("text", "content")
    clean: str = "none"
    append_eod: bool = True
    max_document_mb: int = MAX_DOCUMENT_MB
    joined: bool = False


@dataclass(frozen=True)
class ChunkResult:
    """What becomes of a chunk.

    Attributes:
        tokens: the ids of its documents end to end, as bytes of `token_dtype`.
        lengths: int32 [documents], ids in each.
        skipped: the records that gave no document.
        differs: number of the first compared record whose ids are not the reference's; None if there is none.
    """

    tokens: bytes | memoryview
    lengths: np.ndarray
    skipped: list[Skipped]
    differs: int | None = None


def encode_chunk(chunk: Chunk, settings: Settings, engine: Engine) -> ChunkResult:
    """Tokenize a chunk's documents, each followed by an end token if the settings say so."""
    numbered, skipped = texts_of(chunk, settings.keys, CLEANERS[settings.clean], settings.joined)
    numbers, texts = [number for number, _ in numbered], [text for _, text in numbered]
    ids, lengths = engine.tokenizer.tokenize_batch(texts)
    ends = np.cumsum(lengths)
    differs = next(_differing(chunk.file, numbers, texts, ids, ends, engine), None)
    skipped += [Skipped(numbers[i], "it has no tokens", empty=True) for i in np.flatnonzero(lengths == 0)]
    ids = ids.astype(token_dtype(engine.tokenizer.vocab_size))
    if settings.append_eod:
        ids = np.insert(ids, ends[lengths > 0], engine.tokenizer.eod)
    lengths = lengths[lengths > 0] + int(settings.append_eod)
    skipped.sort(key=lambda s: s.number)
    return ChunkResult(ids.tobytes(), lengths.astype(np.int32), skipped, differs)


def _differing(
    file: int, numbers: list[int], texts: list[str], ids: np.ndarray, ends: np.ndarray, engine: Engine
) -> Iterator[int]:
    """The numbers of those compared records whose ids are not the reference's.

    Args:
        ids: whole numbers [n], the ids of all texts end to end.
        ends: int64 [texts], where each text's ids end.
    """
    if engine.reference is None:
        return
    for i, number in enumerate(numbers):
        if is_compared(file, number):
            begin = ends[i - 1] if i else 0
            if ids[begin : ends[i]].tolist() != engine.reference.tokenize(texts[i]):
                yield number


def encode_chunks(
    chunks: Iterator[Chunk], settings: Settings, engine: Engine, workers: int
) -> Generator[tuple[Chunk, ChunkResult], None, None]:
    """Yield each chunk, without its records, and its result, in order.

    A result's tokens are there until the next one is asked for. At most two chunks a worker are on the way at a time,
    fewer if their documents are long. The workers end when this generator is exhausted or closed, and when this process
    has ended, however it ended.

    Raises:
        UserError: a worker was killed.
    """
    if workers <= 1:
        yield from ((chunk, encode_chunk(chunk, settings, engine)) for chunk in chunks)
        return
    # For the chunks that may be on the way, and for the one whose tokens are being written.
    with TokenSlots(_ON_THE_WAY * workers + 2) as slots:
        arguments = (settings, engine.reference is not None, slots)
        pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=_start_worker, initargs=arguments)
        waiting: deque[tuple[Chunk, Future[_Handed]]] = deque()
        try:
            for chunk in chunks:
                waiting.append((replace(chunk, records=[]), pool.submit(_work, chunk, slots.next())))
                while len(waiting) > _ON_THE_WAY * workers or sum(chunk.size for chunk, _ in waiting) > _IN_FLIGHT:
                    yield from _first(waiting, slots)
            while waiting:
                yield from _first(waiting, slots)
        except BrokenProcessPool as error:
            raise UserError(
                "a worker process was killed, for lack of memory most likely; run the command again with "
                "fewer --workers, it goes on where it stopped."
            ) from error
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


_Handed = tuple[ChunkResult, Slot | bytes]  # a result without its tokens, and what `TokenSlots.put` made of these


def _first(waiting: deque[tuple[Chunk, Future[_Handed]]], slots: TokenSlots) -> Iterator[tuple[Chunk, ChunkResult]]:
    """Wait for the first chunk's result, and yield both."""
    chunk, future = waiting.popleft()
    result, found = future.result()
    with slots.taken(found) as tokens:
        yield chunk, replace(result, tokens=tokens)


_worker: tuple[Settings, Engine, TokenSlots] | None = None  # set in each worker process when it starts


def _start_worker(settings: Settings, fast: bool, slots: TokenSlots) -> None:
    """Run once in each worker: watch the main process, and load the tokenizer, on the fast engine if the main process
    compared it.
    """
    global _worker
    threading.Thread(target=_end_with_parent, daemon=True).start()
    one_thread()
    reference = load_tokenizer(settings.tokenizer_folder)
    _worker = settings, Engine(reference, None, ""), slots
    if fast:
        with suppress(NoFastEngineError):  # the reference gives the same ids, later
            _worker = settings, Engine(fast_tokenizer(reference), reference, ""), slots


def one_thread() -> None:
    """Let the tokenizers' libraries use one thread in this process. Must come before the first tokenizer is made.

    fastokens otherwise starts one for each processor, and while these wait they keep their processors busy.
    """
    os.environ.update(TOKENIZERS_PARALLELISM="false", RAYON_NUM_THREADS="1", FASTOKENS_BPE_THREADS="1")


def _end_with_parent() -> None:
    """End this worker when the main process has ended.

    A worker waits on a queue of which it holds both ends, so it would wait for ever. The pipe behind `parent.join` has
    its other end in the main process alone, and every system closes that end when the process ends.
    """
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _work(chunk: Chunk, slot: int) -> _Handed:
    """`encode_chunk` with the worker's own settings and tokenizer; the tokens go into the slot."""
    assert _worker is not None
    settings, engine, slots = _worker
    result = encode_chunk(chunk, settings, engine)
    return replace(result, tokens=b""), slots.put(slot, bytes(result.tokens))
