"""A conversation on the terminal: a line is asked, the answer appears as it is found."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from collections.abc import Callable, Iterator

from megatron_patch.errors import UserError
from megatron_patch.generate.asking import Asking, add_token
from megatron_patch.generate.continuous_batching import Engine

HELP = "Type a message and Enter. /new begins a new conversation, /exit ends (so does Ctrl-D); Ctrl-C ends an answer."
_PROMPT = "> "


def converse(engine: Engine, asking: Asking, say: Callable[[str], None]) -> None:
    """Ask until there is nothing more to ask."""
    ranks = engine.decoder.ranks
    turns: list[dict[str, str]] = []
    if isinstance(sys.stdin, io.TextIOWrapper):  # bytes that are no text are found in the line, by a sentence
        sys.stdin.reconfigure(errors="surrogateescape")
    say(HELP)
    for number in range(1 << 30):
        line = ranks.from_first(_typed() if ranks.speaks else None)
        if line is None or line.strip() == "/exit":
            return
        if line.strip() in ("", "/new"):
            turns = [] if line.strip() else turns
            continue
        asked = [*turns, {"role": "user", "content": line}]
        try:
            ids, was_cut = asking.shared_ids(asked, ranks)
        except UserError as error:
            say(f"This cannot be asked: {error}")
            continue
        if was_cut:
            say(f"The conversation is longer than {asking.prompt_length} tokens; the last ones were used. /new begins a new one.")
        answer = _answer(engine, asking, number, ids)
        turns = [*asked, {"role": "assistant", "content": answer}] if asking.keeps_turns else []


def _typed() -> str | None:
    """A line of the terminal, None at its end."""
    try:
        return input(_PROMPT if sys.stdin.isatty() else "")
    except EOFError:
        return None
    except KeyboardInterrupt:
        print()
        return None


def _answer(engine: Engine, asking: Asking, number: int, ids: list[int]) -> str:
    """One answer, on standard output as it comes; Ctrl-C ends it between two passes of the engine."""
    request = asking.request(number, ids)
    stream = asking.stream(request)
    engine.submit(request)
    finished = ""
    with _noted(signal.SIGINT, several=engine.decoder.ranks.replica_group is not None) as interrupts:
        while not finished and not interrupts:
            for new in engine.step():
                text, finished = add_token(stream, new.token, request.ends, new.finished)
                if engine.decoder.ranks.speaks:
                    print(text, end="", flush=True)
                if finished:
                    break
    engine.cancel(number)
    if engine.decoder.ranks.speaks:
        print(flush=True)
    return stream.text.strip()


@contextlib.contextmanager
def _noted(number: signal.Signals, several: bool) -> Iterator[list[int]]:
    """The signals of this number that come meanwhile. None interrupts a pass of the engine, which would leave it
    half-done. With several processes each gets a signal at its own moment, so there it ends them, as elsewhere.
    """
    came: list[int] = []
    if several:
        yield came
        return
    before = signal.signal(number, lambda got, _: came.append(got))
    try:
        yield came
    finally:
        signal.signal(number, before)
