"""What the two training entries share: start, data, model, run, stop."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import psutil
import torch

from megatron_patch.arguments.commands import after_training
from megatron_patch.arguments.training import read
from megatron_patch.config import TrainConfig
from megatron_patch.core import parallel
from megatron_patch.core.hang_watch import HangWatch
from megatron_patch.data.batches import RunData
from megatron_patch.errors import OnEveryRank, RunStopped, UserError, print_any_text, sentence
from megatron_patch.language.sentences import in_language
from megatron_patch.processes import notes, place
from megatron_patch.train.best import best_folder, why_over
from megatron_patch.train.log import RunLog
from megatron_patch.train.loop import run
from megatron_patch.train.setup import build_state
from megatron_patch.train.start import start_state

_LOADER_ENDED = "DataLoader worker (pid"  # how torch begins the error of a loader that a signal has ended
_LOGGER = logging.getLogger(__name__)
DataBuilder = Callable[[TrainConfig, parallel.Layout, Callable[[str], None]], RunData]


def read_config(task: str, argv: list[str]) -> TrainConfig:
    """What the arguments ask for.

    Raises:
        SystemExit: status 2, with what is wrong with them.
    """
    print_any_text()
    try:
        return read(task, argv).config
    except UserError as error:
        _leave(str(error))


def training_session(config: TrainConfig, build_data: DataBuilder) -> None:
    """One rank's whole run.

    Raises:
        SystemExit: with status 2 and a sentence for what a user can mend; with 1 if memory is short, the run cannot go
            on, or another rank has ended.
    """
    imported = time.time() - psutil.Process().create_time()
    began = time.perf_counter()
    layout = _start(config)
    joined = time.perf_counter() - began
    log, state, watch = None, None, None
    try:
        log = RunLog(config, active=layout.is_logger)
        log.line(f"  a process has started and imported in {imported:.1f} s, and joined the others in {joined:.1f} s")
        watch = HangWatch(layout, config.options.distributed_timeout_minutes, log.file)
        with log.failures_told():
            log.open_trackers(config, layout.world_size)
            place.move("reading the data")
            data = build_data(config, layout, log.line)
            place.move("building the model")
            state = build_state(config, layout, log, data.train_iters)
            place.move("reading a checkpoint")
            start_state(state, log)
            run(state, data, log)
        if (state.iteration >= data.train_iters and not state.evaluations_owed) or why_over(state):
            log.line(_next_step(config, best_folder(state)))
    except OnEveryRank as error:
        _end_together(error, layout)
    except UserError as error:
        _note_end(error)
        _leave(_sentence(error))
    except OSError as error:
        notes.write_end(is_final=False)  # a disk that fails may come back
        _leave(sentence(error))
    except RuntimeError as error:
        if (full := _memory_error(error)) is not None:
            _leave(_out_of_memory(full, config, joined=state is not None and state.joins_micro_batches), status=1)
        _end_if_a_loader_has(error)
        _end_if_a_rank_has(error)
        raise
    finally:
        if log is not None:
            log.close()
        if state is not None:
            state.close()
    if watch is not None:
        watch.stop()
    parallel.any_rank(False)  # a process whose memory another still has open would end with a warning of torch's
    parallel.stop()


def _end_together(error: OnEveryRank, layout: parallel.Layout) -> NoReturn:
    """Let the log's rank say why no rank goes on, and end."""
    _note_end(error)
    if layout.is_logger:
        _say(str(error))
    parallel.any_rank(False)  # a rank that left before would have torchrun end that one in the middle of its sentence
    sys.exit(1 if isinstance(error, RunStopped) else 2)


def _note_end(error: UserError) -> None:
    """Let torchrun know whether a restart is vain, which the status does not tell."""
    notes.write_end(is_final=not error.may_pass)


def _next_step(config: TrainConfig, best: Path | None) -> str:
    target = Path(config.output_path) / "hf" / config.name
    layout = (config.tensor_model_parallel_size, config.pipeline_model_parallel_size)
    return after_training(best or config.checkpoint_folder, target, *layout)


def _start(config: TrainConfig) -> parallel.Layout:
    try:
        return parallel.start(config)
    except UserError as error:
        _leave(str(error))


def _leave(said: str, status: int = 2) -> NoReturn:
    _say(said)
    sys.exit(status)


def _say(said: str) -> None:
    _LOGGER.error(f"rank {os.environ.get('RANK', '0')}: {in_language(said)}")


def _memory_error(error: BaseException | None) -> torch.OutOfMemoryError | None:
    """The one that is at the beginning of this, if any: recording a CUDA graph covers it with an error of its own."""
    while error is not None and not isinstance(error, torch.OutOfMemoryError):
        error = error.__context__
    return error


def _out_of_memory(error: torch.OutOfMemoryError, config: TrainConfig, joined: bool) -> str:
    """What was asked for, what there is, and which of this run's arguments could take less."""
    choices = {
        f"BATCH_SIZE below {config.micro_batch_size}": config.micro_batch_size > 1,
        "FL true": not config.use_flash_attn,
        "DO true": not config.use_distributed_optimizer,
        "AC full": config.recompute != "full",
        "--pair-micro-batches false": joined,
        "a higher TP or PP, on more GPUs": True,
    }
    asked = str(error).partition(" Including non-PyTorch memory")[0].strip()
    return f"{asked} What takes less: {'; '.join(choice for choice, possible in choices.items() if possible)}."


def _end_if_a_loader_has(error: RuntimeError) -> None:
    if str(error).startswith(_LOADER_ENDED):
        _leave(_ended_loader(error), status=1)


def _end_if_a_rank_has(error: RuntimeError) -> None:
    # gloo's word for a rank that has ended; that one says why, and this one's calls tell nothing.
    if "Connection closed by peer" in str(error) or "Connection reset by peer" in str(error):
        _say(f"another rank has ended ({str(error).strip().splitlines()[0]}).")
        time.sleep(1)  # so that torchrun finds that one first
        sys.exit(1)


def _ended_loader(error: RuntimeError) -> str:
    how = str(error).strip().splitlines()[0].rstrip(". ")
    return (
        f"a process that loads data has ended ({how}). Killed, it took too much memory; a bus error means that shared memory is "
        "full (df -h /dev/shm; of a container --shm-size), or that a data file has become shorter or its disk fails."
    )


def _sentence(error: UserError) -> str:
    """What the error says; torch wraps one of a loader process in its traceback, whose last line it is."""
    text, name = str(error), type(error).__name__
    if not text.startswith(f"Caught {name} in DataLoader worker"):
        return text
    return text.strip().rpartition(f"{type(error).__module__}.{name}: ")[2]
