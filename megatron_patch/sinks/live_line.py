"""How far a run is, in the last line of a terminal: iteration, loss, speed, time left. It is written over and over."""

from __future__ import annotations

import math
import os
import shutil
import time
import unicodedata
from collections.abc import Mapping
from typing import TextIO

from megatron_patch.language.sentences import fill
from megatron_patch.sinks.sink import RunStart, Sink

_PAUSE = 0.1  # seconds between two drawings
_LEAST_BAR, _MOST_BAR = 8, 40  # columns of the bar, without its ends
_GOOD_BAR = 20  # columns that it keeps before something else is shown besides
_BETWEEN = "  "
_VALIDATION = "lm loss validation"  # TensorBoard's tag; of one file among several, its name follows behind a slash


def wants_live_line(progress: str, stream: TextIO) -> bool:
    """Whether `--progress` asks for the line.

    `auto` does in a terminal that can write a line anew. A notebook's `!` gives commands a terminal too, but keeps what
    they write, so there Megatron's lines are the better record.
    """
    if progress != "auto":
        return progress == "true"
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb" and "JPY_PARENT_PID" not in os.environ


class LiveLine(Sink):
    """The line. Whoever else writes to the terminal calls `clear` before; the next step draws it again."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._drawn = 0  # columns on the screen
        self._last = 0.0  # when it was drawn
        self._total = self._iteration = 0
        self._loss: float | None = None
        self._speed: float | None = None
        self._more: Mapping[str, float] = {}
        self._clock: tuple[float, int] | None = None  # when the first step here was done, and its iteration

    def began(self, start: RunStart) -> None:
        """Take up the run."""
        self._total, self._iteration = start.train_iters, start.iteration

    def step(self, iteration: int, loss: float | None) -> None:
        """Draw the line, if the last drawing is some time ago or the run is at its end."""
        now = time.monotonic()
        self._clock = self._clock or (now, iteration)  # the first step loads, records and measures, and tells no speed
        self._iteration = iteration
        self._loss = self._loss if loss is None else loss
        if now - self._last >= _PAUSE or iteration == self._total:
            self.draw()

    def numbers(self, values: Mapping[str, float], iteration: int, samples: int) -> None:
        """Take the speed, and what a wide terminal has room for. A validation's loss and the end stay on the screen."""
        self._speed = values.get("tokens-per-second", self._speed)
        self._more = {**self._more, **values}
        losses = {tag: value for tag, value in values.items() if tag.partition("/")[0] == _VALIDATION}
        for tag, loss in losses.items():
            self.clear()
            text = fill(
                "validation at iteration {}: loss {}, perplexity {}", iteration, f"{loss:.4f}", f"{math.exp(min(20.0, loss)):.2f}"
            )
            name = tag.partition("/")[2]  # of one file among several
            print(f"{name}: {text}" if name else text, file=self._stream, flush=True)
        if iteration == self._total and not losses:
            self.draw()
            self.close()

    def draw(self) -> None:
        """Write the line over the one before."""
        if not self._iteration or self._clock is None:
            return
        text = self.text(self._width() - 1)  # a full last column would begin a new line
        columns = columns_of(text)
        print(f"\r{text}{' ' * (self._drawn - columns)}", end="", file=self._stream, flush=True)
        self._drawn, self._last = columns, time.monotonic()

    def clear(self) -> None:
        """Take the line off the screen, so that something else can be written there."""
        if self._drawn:
            print(f"\r{' ' * self._drawn}\r", end="", file=self._stream, flush=True)
            self._drawn, self._last = 0, 0.0

    def close(self) -> None:
        """Leave the line as it stands, and go to the next one."""
        if self._drawn:
            print(file=self._stream, flush=True)
        self._drawn = 0

    def text(self, width: int) -> str:
        """The line in at most `width` columns; what matters least is left out first."""
        place = fill("iteration {}/{}", self._iteration, self._total)
        behind = [fill("loss {}", f"{self._loss:.4f}")] if self._loss is not None else []
        if self._speed is not None:
            behind.append(fill("{} tokens/s", f"{self._speed:,.0f}"))
        if (left := self._seconds_left()) is not None:
            behind.append(fill("{} left", duration(left)))
        parts = [place, *behind]
        for more in self._extras():
            if columns_of(_BETWEEN.join([*parts, more])) + _GOOD_BAR + 4 <= width:
                parts.insert(-1 if left is not None else len(parts), more)
        room = width - columns_of(_BETWEEN.join(parts)) - len(_BETWEEN) - 2
        if room >= _LEAST_BAR:
            parts.insert(1, self._bar(min(room, _MOST_BAR)))
        while len(parts) > 1 and columns_of(_BETWEEN.join(parts)) > width:
            parts.pop()
        text = _BETWEEN.join(parts)
        while columns_of(text) > width:
            text = text[:-1]
        return text

    def _extras(self) -> list[str]:
        """What a wide terminal shows besides."""
        shown = []
        if (validation := self._more.get(_VALIDATION)) is not None:
            shown.append(fill("validation {}", f"{validation:.4f}"))
        if (rate := self._more.get("learning-rate")) is not None:
            shown.append(fill("lr {}", f"{rate:.2e}"))
        return shown

    def _bar(self, columns: int) -> str:
        done = round(columns * self._iteration / max(1, self._total))
        encoding = (getattr(self._stream, "encoding", None) or "").lower()
        full, empty, first, last = ("█", "░", "▕", "▏") if encoding.startswith("utf") else ("#", "-", "[", "]")
        return first + full * done + empty * (columns - done) + last

    def _seconds_left(self) -> float | None:
        """At the pace since the first step, evaluations and checkpoints included; None before the second."""
        if self._clock is None or self._iteration <= self._clock[1]:
            return None
        began, first = self._clock
        return (time.monotonic() - began) / (self._iteration - first) * (self._total - self._iteration)

    def _width(self) -> int:
        """Columns of the terminal now; COLUMNS or 80 where there is none."""
        try:
            found = os.get_terminal_size(self._stream.fileno()).columns
        except (OSError, ValueError):  # no terminal; a stream without a file
            found = 0
        return found or shutil.get_terminal_size().columns


def columns_of(text: str) -> int:
    """Columns that `text` takes in a terminal; Chinese characters take two."""
    return sum(2 if unicodedata.east_asian_width(one) in "WF" else 1 for one in text)


def duration(seconds: float) -> str:
    """`12 s`, `3 min 20 s`, `1 h 23 min`, `2 d 4 h`."""
    whole = round(seconds)
    if whole < 60:
        return fill("{} s", whole)
    if whole < 3600:
        return fill("{} min {} s", whole // 60, whole % 60)
    if whole < 86400:
        return fill("{} h {} min", whole // 3600, whole % 3600 // 60)
    return fill("{} d {} h", whole // 86400, whole % 86400 // 3600)
