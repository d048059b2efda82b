"""Checkpoints that are written beside the training.

The state is copied into memory that a process shares (`staging.py`), and that process writes it (`writing_process.py`).
The ranks look once a step whether all have written, and agree then; the first rank's process makes a checkpoint of the
folder. The files are those of `save.py`, bit for bit.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from megatron_patch.checkpoint.adapter_folder import stores_base
from megatron_patch.checkpoint.contents import Contents, contents_of
from megatron_patch.checkpoint.finish import Ending, begin
from megatron_patch.checkpoint.host_memory import too_little
from megatron_patch.checkpoint.housekeeping import partial_folder, warn
from megatron_patch.checkpoint.refusals import SaveFailed, together
from megatron_patch.checkpoint.run_progress import RunProgress
from megatron_patch.checkpoint.save import ending
from megatron_patch.checkpoint.staging import Layout, Staging
from megatron_patch.checkpoint.writer import Writer
from megatron_patch.checkpoint.writing_process import Answer, Job, Tidying
from megatron_patch.config import TrainConfig
from megatron_patch.core import parallel
from megatron_patch.folders.fingerprint import Origin
from megatron_patch.folders.layout import iteration_folder
from megatron_patch.formats.new_metadata import Span
from megatron_patch.processes import place

_LOGGER = logging.getLogger(__name__)
_LOOK = 0.05  # seconds between two looks while the training waits


@dataclass(frozen=True)
class Outcome:
    """What became of a save.

    Attributes:
        folder: the checkpoint's.
        progress: how far the run had come.
        seconds: from its beginning to its end, as the ranks have seen it between two steps.
        writing_seconds: of these, those in which the processes wrote.
        refusal: why it could not be written; empty if it was.
    """

    folder: Path
    progress: RunProgress
    seconds: float
    writing_seconds: float
    refusal: str


@dataclass
class _Saving:
    """The save that is under way."""

    contents: Contents
    origin: Origin
    progress: RunProgress
    folder: Path
    began: float
    phase: str = "copying"  # then "writing", "finishing" and "tidying"; or "dropping"
    answer: Answer | None = None
    refusal: str = ""
    writing_seconds: float = 0.0
    ending: Ending | None = None  # on the first rank, as soon as all have written


class BackgroundSaves:
    """The saves of a run, one after the other. Every rank has one, and calls it at the same places.

    Args:
        config: the run's.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self._root = Path(config.checkpoint_folder)
        self._staging: Staging | None = None
        self._writer: Writer | None = None
        self._saving: _Saving | None = None
        self._known: Contents | None = None  # those of the save before

    @property
    def is_saving(self) -> bool:
        """Whether a save is under way; the same on all ranks."""
        return self._saving is not None

    def prepare(self, model: Any, optimizer: Any, scheduler: Any, progress: RunProgress) -> str:
        """Get memory and the process that writes. Call it between two steps, as soon as the optimizer has its state.

        Returns:
            Why this cannot be done, as a sentence, the same on all ranks; empty if it can. Then `save.py` saves.
        """
        if self._saving is not None:  # all is there, and the process that writes may not become another one
            return ""
        return self._made_ready(self._contents(model, optimizer, scheduler, progress), optimizer)

    def _contents(self, model: Any, optimizer: Any, scheduler: Any, progress: RunProgress) -> Contents:
        weights_only, trained_only = self._config.options.save_weights_only, not stores_base(self._config)
        parts = (model, optimizer, scheduler, progress)
        self._known = contents_of(*parts, weights_only=weights_only, trained_only=trained_only, known=self._known)
        return self._known

    def _made_ready(self, contents: Contents, optimizer: Any) -> str:
        layout = None if self._staging is None else self._staging.layout
        if layout is None or layout.of is not contents.files:
            adam = optimizer.chained_optimizers[0].optimizer
            layout = Layout(contents, () if self._config.options.save_weights_only else adam.halves())
        fits = self._staging is not None and self._staging.layout.signature == layout.signature
        if parallel.any_rank(not fits):
            self.close()
            if problem := too_little(layout.size, contents.nbytes, self._root):
                return problem
        try:
            together(lambda: self._take(layout))
        except SaveFailed as failure:
            return f"{str(failure).rstrip('.')}, so checkpoints are written while the training waits."
        return ""

    def _take(self, layout: Layout) -> None:
        """Get memory for `layout` and the process that writes, as far as they are not there.

        Raises:
            OSError: the operating system refuses one.
        """
        if self._staging is None:
            self._staging = Staging(layout)
        self._staging.layout = layout
        lost = self._writer is None or self._writer.has_ended
        writer = self._living_writer()
        if lost and parallel.rank() == 0:
            writer.ask(self._root)  # what killed saves have left goes before anything is written

    def _living_writer(self) -> Writer:
        """The process that writes; another one if there is none, or if it has ended."""
        assert self._staging is not None
        if self._writer is not None and self._writer.has_ended:
            self._writer.close()
            self._writer = None
        self._writer = self._writer or Writer(self._staging.descriptor, self._staging.size)
        return self._writer

    def begin(self, model: Any, optimizer: Any, scheduler: Any, progress: RunProgress, origin: Origin, *, only_best: bool) -> str:
        """Begin to save the state of this moment. No save may be under way. Arguments are those of `save_checkpoint`.

        Returns:
            As `prepare`.

        Raises:
            SaveFailed: the folder cannot be made.
        """
        assert self._saving is None
        began = time.perf_counter()
        contents = self._contents(model, optimizer, scheduler, progress)
        if problem := self._made_ready(contents, optimizer):
            return problem
        assert self._staging is not None and self._writer is not None
        self._staging.wait_until_pinned()
        problems = [one for one in parallel.from_all_ranks(self._staging.problem) if one]
        if problems:
            return f"{problems[0]}, so checkpoints are written while the training waits."
        self._writer.wait()
        folder = iteration_folder(self._root, progress.iteration)
        first = parallel.rank() == 0
        together(lambda: begin(partial_folder(folder), only_best) if first else None)
        self._staging.copy()
        self._saving = _Saving(contents, origin, progress, folder, began)
        self._advance(self._saving)
        return ""

    def before_update(self) -> None:
        """Let the next update, on the device, wait until it may overwrite the state."""
        if self._saving is not None and self._staging is not None:
            self._staging.before_update()

    def poll(self) -> Outcome | None:
        """Go on with the save if every rank has done its part; returns what became of it at its end.

        Every rank calls it while a save is under way, once a step.
        """
        saving = self._saving
        assert saving is not None
        self._advance(saving)
        return None if parallel.any_rank(saving.answer is None) else self._agreed(saving)

    def wait(self) -> Outcome:
        """`poll` until the save has ended; the training stands still."""
        assert self._staging is not None
        seen = 0
        self._staging.wait_until_copied()
        while (outcome := self.poll()) is None:
            if self._staging.written != seen:  # whoever watches for a standstill sees that there is none
                seen = self._staging.written
                place.advance()
            time.sleep(_LOOK)
        return outcome

    def _advance(self, saving: _Saving) -> None:
        """Go on with this rank's part."""
        assert self._staging is not None and self._writer is not None
        if saving.phase == "copying" and self._staging.is_copied:
            objects = {saving.contents.objects_name: b"".join(saving.contents.objects.values())}
            files = self._staging.layout.files
            self._writer.ask(Job(partial_folder(saving.folder), files, objects if saving.contents.objects else {}))
            saving.phase = "writing"
        if saving.phase != "copying" and saving.answer is None:
            saving.answer = self._writer.answer()

    def _agreed(self, saving: _Saving) -> Outcome | None:
        """What follows when every rank has an answer: the next phase, or the end."""
        assert self._writer is not None and saving.answer is not None
        for warning in saving.answer.warnings:
            _LOGGER.warning(warning)
        everybodys = parallel.from_all_ranks((saving.answer.refusal, saving.answer.seconds))
        refusal = next((refused for refused, _ in everybodys if refused), "")
        saving.writing_seconds += max(seconds for _, seconds in everybodys)
        if saving.phase == "tidying":  # it is complete already, whatever has become of the process
            if saving.answer.refusal:
                warn(f"{saving.folder} is complete; then {saving.answer.refusal.rstrip('.')}.")
            refusal = ""
        saving.refusal = saving.refusal or refusal
        if saving.phase == "writing" and not refusal:
            saving.ending = self._ending(saving)
            self._next(saving, "finishing", saving.ending)
        elif saving.phase == "finishing" and not refusal:
            self._next(saving, "tidying", None if saving.ending is None else Tidying(saving.ending))
        elif saving.phase != "dropping" and refusal:
            self._next(saving, "dropping", self._root)
        else:
            self._saving = None
            seconds = time.perf_counter() - saving.began
            return Outcome(saving.folder, saving.progress, seconds, saving.writing_seconds, saving.refusal)
        return None

    def _next(self, saving: _Saving, phase: str, request: Ending | Tidying | Path | None) -> None:
        """Let the first rank's process do `request`; the others have nothing to do."""
        saving.phase, saving.answer = phase, Answer("", {}, [])
        if parallel.rank() == 0 and request is not None:
            saving.answer = None
            self._living_writer().ask(request)

    def _ending(self, saving: _Saving) -> Ending | None:
        """What the first rank's process is to do when all have written; every rank calls it."""
        assert saving.answer is not None
        spans = [Span(name, start, length) for name in saving.contents.names for start, length in saving.answer.places[name]]
        everybodys = parallel.from_all_ranks(saving.contents.described(spans))
        if parallel.rank() != 0:
            return None
        return ending(self._config, saving.origin, saving.progress, saving.contents.common, everybodys)

    def close(self) -> None:
        """Let the process end and the memory go. No save may be under way."""
        assert self._saving is None
        if self._writer is not None:
            self._writer.close()
        if self._staging is not None:
            self._staging.close()
        self._writer = self._staging = None
