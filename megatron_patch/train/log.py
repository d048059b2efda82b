"""What a run tells: Megatron's console line, the log file, and the numbers that go to the sinks.

Lines and warnings go through Python's `logging`, below the name megatron_patch. On the rank that writes the log, one
handler serves the console and one the file. The other ranks have none: their lines are dropped, and Python's handler of
last resort writes their warnings and errors to stderr.
"""

from __future__ import annotations

import datetime
import logging
import math
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from megatron_patch.config import TrainConfig
from megatron_patch.errors import named, refusal
from megatron_patch.folders.metrics_file import started_folder
from megatron_patch.formats.json_files import one_line
from megatron_patch.language.sentences import in_language
from megatron_patch.processes.console import tell
from megatron_patch.sinks.live_line import LiveLine, wants_live_line
from megatron_patch.sinks.metrics_lines import MetricsSink
from megatron_patch.sinks.sink import RunStart, Sink
from megatron_patch.sinks.tensorboard_files import TensorBoardFiles
from megatron_patch.sinks.tracking import open_trackers
from megatron_patch.train.record import machine, versions
from megatron_patch.train.state import StepResult

_LOGGER = logging.getLogger("megatron_patch")
_OF_ITERATION = "is_of_iteration"  # the attribute of a record whose line a live line stands for


class _Console(logging.Handler):
    """Lines go to stdout, warnings and errors to stderr; each is flushed.

    A failure to write raises, where logging's own handler would go on. Where there is a live line, it steps aside for
    each, and stands for the lines of iterations.
    """

    def __init__(self, live: LiveLine | None) -> None:
        super().__init__()
        self._live = live

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record, in the user's language; the lines of iterations are Megatron's, and stay as they are."""
        of_iteration = getattr(record, _OF_ITERATION, False)
        if self._live is not None:
            if of_iteration:
                return
            self._live.clear()
        text = self.format(record)
        said = text if of_iteration else in_language(text)
        print(said, file=sys.stderr if record.levelno >= logging.WARNING else sys.stdout, flush=True)


class _File(logging.FileHandler):
    """A log file. What the disk refuses of it is told once, on the console, and costs its lines alone."""

    is_refused = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Tell a refusal of the operating system, which `emit` has just caught; raise anything else."""
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            raise  # noqa: PLE0704  what `emit` has just caught
        self.tell(error)

    def tell(self, error: OSError) -> None:
        """Say what the operating system refused, the first time."""
        if not self.is_refused:
            self.is_refused = True
            _say_refused("lines of the log are missing in the file", named(error, self.baseFilename))


def _say_refused(what: str, error: OSError) -> None:
    tell(in_language(f"warning: {what} ({refusal(error).rstrip('.')})."))


def _quiet_writer(arguments: threading.ExceptHookArgs) -> None:
    """`threading.excepthook` but for TensorBoard's thread, whose error its next scalar raises again."""
    if not (isinstance(arguments.exc_value, OSError) and type(arguments.thread).__module__.startswith("tensorboard.")):
        threading.__excepthook__(arguments)


class RunLog:
    """One rank's console, `log/NAME_DATE/`, and the sinks. If not `active`, every call does nothing.

    A file that cannot be written any more is told once, and the run goes on without it.

    Raises:
        OSError: the files cannot be made.
    """

    def __init__(self, config: TrainConfig, active: bool) -> None:
        self.active = active
        self.file: Path | None = None
        self.sinks: tuple[Sink, ...] = ()
        if not active:
            return
        base, name = Path(config.output_path), started_folder(config.name, datetime.datetime.now())
        self.folder = base / "log" / name
        self.folder.mkdir(parents=True, exist_ok=True)
        live = LiveLine(sys.stdout) if wants_live_line(config.options.progress, sys.stdout) else None
        self.file = self.folder / "train.log"
        self.handlers = (_Console(live), _File(self.file, encoding="utf-8", errors="backslashreplace"))
        for handler in self.handlers:
            _LOGGER.addHandler(handler)
        _LOGGER.setLevel(logging.INFO)
        _LOGGER.propagate = False  # a library that sets up the root logger would repeat every line
        threading.excepthook = _quiet_writer
        # Every place that the run's numbers go to; `open_trackers` adds those that need another program.
        self.sinks = (
            TensorBoardFiles(base / "tensorboard" / name),
            MetricsSink(self.folder, config, versions(), machine()),
            *([live] if live else []),
        )
        self._live = live

    def open_trackers(self, config: TrainConfig, world_size: int) -> None:
        """Begin or take up the run in the trackers that the flags name.

        Raises:
            UserError: a new run cannot begin there.
        """
        if self.active:
            self.sinks = (*self.sinks, *open_trackers(config, world_size, self.line))

    def line(self, text: str) -> None:
        """Write one line to console, in the user's language, and to the file, in English."""
        if self.active:
            _LOGGER.info(text)

    def warn(self, sentence: str) -> None:
        """Write a warning to stderr and file."""
        if self.active:
            _LOGGER.warning(f"warning: {sentence}")

    def iteration_line(self, text: str) -> None:
        """Write an iteration's line to the file, and to the console unless a live line stands there."""
        if self.active:
            _LOGGER.info(text, extra={_OF_ITERATION: True})

    def make_room(self) -> None:
        """Take the live line off the terminal, because something else is going to write there."""
        if self.active and self._live is not None:
            self._live.clear()

    def began(self, config: TrainConfig, iteration: int, consumed_samples: int, train_iters: int, world_size: int) -> None:
        """Tell the sinks that the first step is about to begin, and how far the run has come before."""
        if self.active:
            start = RunStart(config, self.folder, iteration, consumed_samples, train_iters, world_size)
            self._to_each(lambda sink: sink.began(start))

    def step(self, iteration: int, loss: float | None) -> None:
        """Tell the sinks that an iteration is done, and its mean loss if it has one."""
        self._to_each(lambda sink: sink.step(iteration, loss))

    def numbers(self, values: Mapping[str, float], iteration: int, samples: int) -> None:
        """Give the sinks the numbers of a log line or of an evaluation, by TensorBoard's tags."""
        self._to_each(lambda sink: sink.numbers(values, iteration, samples))

    def _to_each(self, tell: Callable[[Sink], None]) -> None:
        """Tell each sink. One whose files the operating system refuses is told no more, and the user once."""
        for sink in self.sinks:
            try:
                tell(sink)
            except OSError as error:
                self.sinks = tuple(other for other in self.sinks if other is not sink)
                _say_refused(f"{sink.name} gets nothing more of this run's numbers", error)

    def event(self, kind: str, **values: object) -> None:
        """Tell the sinks of something that happened."""
        self._to_each(lambda sink: sink.event(kind, values))

    @contextmanager
    def failures_told(self) -> Iterator[None]:
        """Tell the sinks why the run ends, where that is an error."""
        try:
            yield
        except Exception as error:
            self.event("stop", reason=f"error: {one_line(error) or type(error).__name__}")
            raise

    def close(self) -> None:
        """Close the sinks and files, and leave Python's `logging` as it was."""
        self._to_each(lambda sink: sink.close())
        if not self.active:
            return
        for handler in self.handlers:
            _LOGGER.removeHandler(handler)
        self.handlers[0].close()
        try:
            self.handlers[1].close()
        except OSError as error:
            self.handlers[1].tell(error)
        _LOGGER.setLevel(logging.NOTSET)
        _LOGGER.propagate = True
        threading.excepthook = threading.__excepthook__


def training_line(
    *,
    iteration: int,
    train_iters: int,
    consumed_samples: int,
    seconds: float,
    tflops: float,
    tokens_per_second: float,
    lr: float,
    global_batch_size: int,
    loss: float | None,
    result: StepResult,
    skipped: int,
    nan: int,
) -> str:
    """Megatron-LM's line of `training_log`, with its separators and widths. Tokens per second stand beside TFLOP/s.

    Args:
        seconds: mean wall time of an iteration since the last line.
        tflops: model TFLOP/s of one GPU.
        tokens_per_second: of one GPU.
        loss: mean since the last line; None if every iteration since was skipped.
        skipped: iterations since the last line whose fp16 gradient overflowed.
        nan: iterations since the last line whose gradient was not finite in another precision.
    """
    now = datetime.datetime.now().strftime("%Y-%m-%d %H:%M:%S.%f")
    parts = [
        f" [{now}] iteration {iteration:8d}/{train_iters:8d}",
        f" consumed samples: {consumed_samples:12d}",
        f" elapsed time per iteration (ms): {seconds * 1000.0:.1f}",
        f" throughput per GPU (TFLOP/s/GPU): {tflops:.1f}",
        f" tokens per second per GPU: {tokens_per_second:.0f}",
        f" learning rate: {lr:.6E}",
        f" global batch size: {global_batch_size:5d}",
        *([f" lm loss: {loss:.6E}"] if loss is not None else []),
        f" loss scale: {result.loss_scale:.1f}",
        f" grad norm: {result.grad_norm:.3f}",
        f" number of skipped iterations: {skipped:3d}",
        f" number of nan iterations: {nan:3d}",
    ]
    return " |".join(parts) + " |"


def validation_lines(iteration: int, loss: float, name: str = "") -> list[str]:
    """Megatron-LM's validation line, between two rules of its length; of one of several files with its name."""
    on = f" on {name}" if name else ""
    text = f" validation loss at iteration {iteration}{on} | lm loss value: {loss:.6E} | lm loss PPL: {perplexity(loss):.6E} | "
    return ["-" * len(text), text, "-" * len(text)]


def perplexity(loss: float) -> float:
    """exp(loss), cut at exp(20) as in Megatron."""
    return math.exp(min(20.0, loss))
