"""Answers of the HTTP interface on their way from the engine's thread to the web server's loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from megatron_patch.generate.asking import add_token
from megatron_patch.generate.continuous_batching import NO_TOKEN, NewToken, Request
from megatron_patch.generate.logprobs import Score
from megatron_patch.generate.openai_logprobs import Logprobs
from megatron_patch.generate.service import Service
from megatron_patch.generate.text_stream import TextStream


@dataclass
class Piece:
    """Some of an answer: text, why the answer ended or nothing, and the scores that came with it."""

    text: str
    reason: str = ""
    scores: list[Score] = field(default_factory=list)


@dataclass
class Answer:
    """One answer on its way.

    Attributes:
        pieces: arrive here; the last one has a reason.
        echoed: the prompt's text, if it is to stand before the answer.
        logprobs: what tells them, if they are asked for.
        number: the service's; None while it is not in the queue.
        tokens: that have come.
        is_spoken: whether it is a turn of a conversation. The space before its first word is no part of it:
            SentencePiece or the template puts one there.
    """

    request: Request
    pieces: asyncio.Queue[Piece] = field(default_factory=asyncio.Queue)
    echoed: str = ""
    logprobs: Logprobs | None = None
    number: int | None = None
    tokens: int = 0
    is_spoken: bool = False


def listener(
    loop: asyncio.AbstractEventLoop, answer: Answer, stream: TextStream, service: Service
) -> Callable[[NewToken], None]:  # fmt: skip
    """What the engine's thread calls with each token; it hands text to the loop of the web server."""
    if answer.echoed:
        answer.pieces.put_nowait(Piece(answer.echoed))

    def hear(new: NewToken) -> None:
        text, finished = "", new.finished
        if new.token != NO_TOKEN:
            answer.tokens += 1
            is_first = not stream.text
            text, finished = add_token(stream, new.token, answer.request.ends, new.finished)
            if answer.is_spoken and is_first:
                text = text.removeprefix(" ")
        if finished and not new.finished:  # a stop word
            service.cancel(new.number)
        if text or finished or new.scores:
            loop.call_soon_threadsafe(answer.pieces.put_nowait, Piece(text, finished, list(new.scores)))

    return hear
