"""What a run starts from, agreed upon by all ranks and loaded; a damaged checkpoint of its own gives way to the one
before.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import time
from pathlib import Path

import torch

from megatron_patch.checkpoint.housekeeping import set_aside
from megatron_patch.checkpoint.initial_weights import load_weights
from megatron_patch.checkpoint.restore import restore
from megatron_patch.config import TrainConfig
from megatron_patch.core import parallel
from megatron_patch.errors import OnEveryRank, UserError
from megatron_patch.folders.fingerprint import fingerprint
from megatron_patch.folders.starting_point import Start, damage_sentence, find_start, usable_before
from megatron_patch.train import optimizer as optim
from megatron_patch.train.best import said_of_best
from megatron_patch.train.log import RunLog
from megatron_patch.train.state import TrainState

_LOOKS = 60  # a second apart; a shared file system may show a rename to other hosts half a minute later


def start_state(state: TrainState, log: RunLog) -> None:
    """Load what the run starts from into `state`, and write a line about it. Every rank calls it.

    That is the run's own last checkpoint, or another run's, or the weights of PRETRAIN_CHECKPOINT_PATH, or nothing for
    random weights.

    Raises:
        OnEveryRank: what was named is damaged, or the run's own checkpoints all are.
    """
    asked = state.config
    while True:
        start = _agreed_start(asked)
        for folder, why in start.damaged:
            assert start.folder is not None, "a damaged one is told only where another can be used"
            _set_aside(folder, why, start.folder, log)
        state.config, state.origin = start.config, start.origin
        if start.folder is None:
            _load_weights(state, log)
            return
        try:
            _restore(state, start.folder, log)
            return
        except UserError as error:
            is_own = start.folder.parent == Path(asked.checkpoint_folder)
            instead = parallel.from_all_ranks(usable_before(start.folder) if is_own else None)[0]
            if instead is None:
                raise
            _set_aside(start.folder, str(error), instead, log)


def _agreed_start(config: TrainConfig) -> Start:
    """What every rank finds to start from, once all find the same.

    Raises:
        OnEveryRank: the arguments and what is there do not go together, or ranks keep finding different checkpoints.
    """
    for look in range(_LOOKS):
        if look:
            time.sleep(1)
        start = parallel.all_or_none(lambda: find_start(config))
        seen = parallel.from_all_ranks((None if start.folder is None else start.folder.name, _mark(start.folder)))
        if len(set(seen)) == 1:
            return start
    views = "; ".join(f"rank {rank} finds {name or 'none'}" for rank, (name, _) in enumerate(seen) if (name, _) != seen[0])
    raise OnEveryRank(
        f"The processes do not see the same checkpoint in {config.checkpoint_folder}: rank 0 finds {seen[0][0] or 'none'}, "
        f"{views}. Every node must see one OUTPUT_BASEPATH: name a folder that all of them share."
    )


def _mark(folder: Path | None) -> str:
    """What tells a checkpoint from another of the same number."""
    if folder is None:
        return ""
    small = [name for name in (".metadata", "common.pt", "run_config.json") if (folder / name).is_file()]
    return fingerprint((name, folder / name) for name in small)


def _set_aside(folder: Path, why: str, instead: Path, log: RunLog) -> None:
    log.warn(damage_sentence(folder, why, instead))
    first = torch.distributed.get_rank() == 0
    parallel.all_or_none(lambda: set_aside(folder, instead) if first else None)


def _restore(state: TrainState, folder: Path, log: RunLog) -> None:
    # A large state takes minutes. Whether it is sound shows then only.
    log.line(f"  reading the checkpoint {folder}")
    began = time.perf_counter()
    progress = restore(folder, state.model, state.optimizer, state.scheduler)
    for name, value in vars(progress).items():
        setattr(state, name, value)
    number, seconds = int(folder.resolve().name.removeprefix("iter_")), time.perf_counter() - began
    log.line(f"  going on from iteration {number}: {folder} (read in {seconds:.1f} s)")
    if said := said_of_best(state):
        log.line(f"  {said}")


def _load_weights(state: TrainState, log: RunLog) -> None:
    config = state.config
    if config.load is None:
        log.line(f"  starting from random weights, seed {config.options.seed}")
        return
    log.line(f"  starting from the weights of {config.load}")
    for note in load_weights(config.load, state.model, config.options.gqa_layout, config.model):
        log.line(f"  {note}")
    optim.weights_were_loaded(state.optimizer)
