"""What a run starts from, agreed upon by all ranks and loaded; a damaged checkpoint of its own gives way to the one
before.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import os
import time
from dataclasses import replace
from pathlib import Path

import torch

from megatron_patch.checkpoint.adapter_folder import check_base, stores_base
from megatron_patch.checkpoint.adapter_weights import load_adapter
from megatron_patch.checkpoint.housekeeping import set_aside
from megatron_patch.checkpoint.initial_weights import load_weights
from megatron_patch.checkpoint.local_output import keeps_folder
from megatron_patch.checkpoint.restore import restore
from megatron_patch.config import TrainConfig
from megatron_patch.core import messages, parallel
from megatron_patch.errors import OnEveryRank, UserError, lies_outside
from megatron_patch.folders.damage import damage_sentence, usable_before, usable_up_to
from megatron_patch.folders.fingerprint import fingerprint
from megatron_patch.folders.layout import iteration_folder
from megatron_patch.folders.starting_point import Start, find_start
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
        RefusedOnEveryRank: a file cannot be read for a reason that lies outside of it. Nothing has been moved aside.
    """
    asked = state.config
    while True:
        start = _start_in_common(asked, log) if asked.options.local_output else _agreed_start(asked)
        for folder, why in start.damaged:
            assert start.folder is not None, "a damaged one is told only where another can be used"
            _set_aside(state.config, folder, why, start.folder, log)
        state.config, state.origin = start.config, start.origin
        if start.folder is None:
            _load_weights(state, log)
            return
        if not stores_base(state.config):
            _load_frozen(state, log)
        is_own = start.folder.parent == Path(asked.checkpoint_folder)
        try:
            _restore(state, start.folder, log)
            state.last_checkpoint = start.folder if is_own else None
            return
        except UserError as error:
            # Rights, or a file server that does not answer, say nothing against the checkpoint.
            is_damaged = is_own and not lies_outside(error)
            instead = _before(start.folder, asked) if is_damaged else None
            if instead is None:
                raise
            _set_aside(state.config, start.folder, str(error), instead, log)


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


def _before(folder: Path, config: TrainConfig) -> Path | None:
    """The last checkpoint before `folder` that can be used, on every node if each has its own; else None."""
    if not config.options.local_output:
        return parallel.from_all_ranks(parallel.all_or_none(lambda: usable_before(folder)))[0]
    number = int(folder.name.removeprefix("iter_"))
    common = _in_common(parallel.all_or_none(lambda: list(usable_up_to(folder.parent, number - 1))))
    return iteration_folder(folder.parent, common[0]) if common else None


def _in_common(numbers: list[int]) -> list[int]:
    """Those that every rank has, the largest first."""
    return sorted(set.intersection(*map(set, parallel.from_all_ranks(numbers))), reverse=True)


def _start_in_common(config: TrainConfig, log: RunLog) -> Start:
    """What the run starts from where each node has its own OUTPUT_BASEPATH: the last checkpoint that all have.

    A kill amid a save leaves one on some nodes alone, and so does damage.

    Raises:
        OnEveryRank: as `_agreed_start`; or some nodes have checkpoints of the run, and none is on all.
    """
    start = parallel.all_or_none(lambda: find_start(config))
    root = Path(config.checkpoint_folder)
    own = start.folder if start.folder is not None and start.folder.parent == root else None
    name = "none" if start.folder is None else start.folder.name
    found = parallel.from_all_ranks((messages.node(), (name, own is not None, _mark(start.folder)), start.damaged))
    damaged = tuple(dict(pair for _, _, pairs in found for pair in pairs).items())
    if len({view for _, view, _ in found}) == 1:
        return replace(start, damaged=damaged)
    last = -1 if own is None else int(own.name.removeprefix("iter_"))
    common = _in_common(parallel.all_or_none(lambda: list(usable_up_to(root, last))))
    nodes = {node: name for node, (name, _, _), _ in found}
    seen = ", ".join(f"node {node} has {name}" for node, name in sorted(nodes.items()))
    if not common:
        raise OnEveryRank(
            f"The nodes have no checkpoint of {root} in common (--local-output true): {seen}. Start the run on the nodes that "
            "wrote it, or remove that folder from all of them to start anew."
        )
    folder = iteration_folder(root, common[0])
    log.line(f"  the nodes' last checkpoints differ: {seen}; {folder.name} is the last that all have")
    return replace(start, folder=folder, damaged=damaged)


def _mark(folder: Path | None) -> str:
    """What tells a checkpoint from another of the same number."""
    if folder is None:
        return ""
    # os.path's `isfile` takes an error for no: one rank alone looks here, and whoever reads the file says what it is.
    small = [name for name in (".metadata", "common.pt", "run_config.json") if os.path.isfile(folder / name)]
    return fingerprint((name, folder / name) for name in small)


def _set_aside(config: TrainConfig, folder: Path, why: str, instead: Path, log: RunLog) -> None:
    log.warn(damage_sentence(folder, why, instead))
    keeps = keeps_folder(config)
    parallel.all_or_none(lambda: set_aside(folder, instead) if keeps else None)


def _restore(state: TrainState, folder: Path, log: RunLog) -> None:
    # A large state takes minutes. Whether it is sound shows then only.
    log.line(f"  reading the checkpoint {folder}")
    began, trained_only = time.perf_counter(), not stores_base(state.config)
    progress = restore(folder, state.model, state.optimizer, state.scheduler, trained_only=trained_only)
    for name, value in vars(progress).items():
        setattr(state, name, value)
    number, seconds = int(folder.resolve().name.removeprefix("iter_")), time.perf_counter() - began
    log.line(f"  going on from iteration {number}: {folder} (read in {seconds:.1f} s)")
    if said := said_of_best(state):
        log.line(f"  {said}")


def _load_frozen(state: TrainState, log: RunLog) -> None:
    """Load the frozen weights of a LoRA run that goes on."""
    config, first = state.config, torch.distributed.get_rank() == 0
    assert config.load is not None
    parallel.all_or_none(lambda: check_base(config, state.origin.load_fingerprint) if first else None)
    log.line(f"  frozen weights: those of {config.load}")
    load_weights(config.load, state.model, config.options.gqa_layout, config.model)


def _load_weights(state: TrainState, log: RunLog) -> None:
    config = state.config
    if config.load is None:
        log.line(f"  starting from random weights, seed {config.options.seed}")
    else:
        log.line(f"  starting from the weights of {config.load}")
        for note in load_weights(config.load, state.model, config.options.gqa_layout, config.model):
            log.line(f"  {note}")
    if config.lora is not None and config.options.lora_adapter:
        log.line(f"  starting from the adapter {config.options.lora_adapter}")
        load_adapter(config.options.lora_adapter, state.model, config.model, config.lora)
    optim.weights_were_loaded(state.optimizer)
