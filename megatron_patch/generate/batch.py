"""A file of queries through the engine. Each replica answers its share and writes each answer as it is found."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch.distributed as dist

from megatron_patch.formats.progress import Progress
from megatron_patch.generate.answers_file import AnswersWriter, Query, answered, put_in_order, read_queries
from megatron_patch.generate.asking import Asking, add_token
from megatron_patch.generate.continuous_batching import Engine, Request
from megatron_patch.generate.text_stream import TextStream


def answer_file(engine: Engine, asking: Asking, source: Path, output: Path, say: Callable[[str], None]) -> None:
    """Answer every query of `source` that `output` has no answer to.

    Raises:
        UserError: a query cannot be read, or `output` holds something else.
    """
    ranks = engine.decoder.ranks
    queries = read_queries(source)
    done = answered(output, queries, asking.run).keys()
    if ranks.replicas > 1 or ranks.replica_group is not None:
        dist.barrier()  # before anyone writes
    if done:
        say(f"{len(done)} of {len(queries)} queries are answered in {output} already; the rest follows.")
    mine = [query for query in queries if query.index not in done][ranks.replica :: ranks.replicas]
    cut = _answer(engine, asking, mine, AnswersWriter(output, ranks.replica, asking.run) if ranks.speaks else None)
    if cut:
        say(f"{cut} of {len(mine)} prompts were longer than INPUT_SEQ_LEN = {asking.prompt_length}; their last tokens were used.")
    if ranks.replicas > 1 or ranks.replica_group is not None:
        dist.barrier()
    if ranks.speaks and ranks.replica == 0:
        put_in_order(output, queries, asking.run)


def _answer(engine: Engine, asking: Asking, queries: list[Query], writer: AnswersWriter | None) -> int:
    """Answer `queries`, as many at a time as the engine has slots for; how many prompts were cut."""
    streams: dict[int, tuple[Query, Request, TextStream]] = {}
    ranks = engine.decoder.ranks
    waiting, cut = iter(queries), 0
    shows = Progress("answering", len(queries), unit="answers") if writer is not None else nullcontext()
    with shows as progress:
        while True:
            # A few more than there are slots, so that one that becomes free finds its next request.
            while len(streams) < 2 * engine.slots and (query := next(waiting, None)) is not None:
                ids, was_cut = asking.shared_ids([{"role": "user", "content": query.text}], ranks)
                cut += was_cut
                request = asking.request(query.index, ids)
                streams[query.index] = (query, request, asking.stream(request))
                engine.submit(request)
            if engine.is_idle:
                break
            for new in engine.step():
                if new.number not in streams:
                    continue  # a stop word has ended the answer, one token earlier in this pass
                query, request, stream = streams[new.number]
                _, finished = add_token(stream, new.token, request.ends, new.finished)
                if finished:
                    engine.cancel(new.number)
                    del streams[new.number]
                    if writer is not None:
                        writer.write(query, stream.text, finished)
                    if progress is not None:
                        progress.add(1)
    if writer is not None:
        writer.close()
    return cut
