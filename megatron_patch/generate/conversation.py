"""A conversation on the terminal: a line is asked, the answer appears as it is found."""

from __future__ import annotations

import sys
from collections.abc import Callable

from megatron_patch.errors import UserError
from megatron_patch.generate.batch import Asking, add_token
from megatron_patch.generate.engine import Engine

HELP = "Type a message and Enter. /new begins a new conversation, /exit ends (so does Ctrl-D); Ctrl-C ends an answer."
_PROMPT = "> "


def converse(engine: Engine, asking: Asking, keeps_turns: bool, say: Callable[[str], None]) -> None:
    """Ask until there is nothing more to ask.

    Args:
        keeps_turns: whether the template has a place for earlier turns; without, each message stands alone.
    """
    ranks = engine.decoder.ranks
    turns: list[dict[str, str]] = []
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
            answer = _answer(engine, asking, number, asked)
        except UserError as error:
            say(str(error))
            continue
        turns = [*asked, {"role": "assistant", "content": answer}] if keeps_turns else []


def _typed() -> str | None:
    """A line of the terminal, None at its end."""
    try:
        return input(_PROMPT if sys.stdin.isatty() else "")
    except EOFError:
        return None
    except KeyboardInterrupt:
        print()
        return None


def _answer(engine: Engine, asking: Asking, number: int, turns: list[dict[str, str]]) -> str:
    """One answer, on standard output as it comes."""
    request = asking.request(number, asking.ids(turns)[0])
    stream = asking.stream(request)
    engine.submit(request)
    finished = ""
    try:
        while not finished:
            for new in engine.step():
                text, finished = add_token(stream, new.token, request.ends, new.finished)
                if engine.decoder.ranks.speaks:
                    print(text, end="", flush=True)
    except KeyboardInterrupt:
        # With several processes each gets the signal at its own moment, so that they would no longer agree.
        if engine.decoder.ranks.replica_group is not None:
            raise
    engine.cancel(number)
    if engine.decoder.ranks.speaks:
        print(flush=True)
    return stream.text.strip()
