"""Going on from a training run's checkpoint: everything that `save` wrote, into the objects of a new run."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.optimizer import ChainedOptimizer

from megatron_patch.checkpoint.adapter_folder import load_trained
from megatron_patch.checkpoint.checked_load import load_checked
from megatron_patch.checkpoint.contents import module, run_state
from megatron_patch.checkpoint.optimizer_state import load_optimizer_state, name_as_saved, stored_groups
from megatron_patch.checkpoint.run_progress import RunProgress
from megatron_patch.core import parallel
from megatron_patch.errors import UserError, once_more
from megatron_patch.folders.layout import read_model_description
from megatron_patch.folders.recorded_run import read_run_config

# A run may have become longer. `folders/recorded_run.py` has compared everything else that the schedule depends on.
_LENGTHS = ("lr_decay_steps", "wd_incr_steps")
# Fields of RunProgress that earlier checkpoints do not have.
_LATER: dict[str, Any] = {field.name: field.default for field in fields(RunProgress) if field.default is not MISSING}
# What tells core's parameter groups apart, and what Adam and the schedule read of each.
_GROUP_KEYS = ("wd_mult", "lr_mult", "is_expert_parallel", "is_decoupled_lr")
_GROUP_NUMBERS = {"lr": 0.0, "weight_decay": 0.0, "eps": 0.0, "betas": (0.0, 0.0)}

# What Python, numpy and torch raise for numbers of the right form that are no random state of theirs.
_NO_STATE = (RuntimeError, ValueError, OverflowError)


def restore(folder: Path, model: Any, optimizer: ChainedOptimizer, scheduler: Any, *, trained_only: bool = False) -> RunProgress:
    """Load everything that `save_checkpoint` wrote to `folder` into the objects given. Every rank calls it.

    Random state is restored where TP and PP are as they were, because each place among these has its own.

    Args:
        folder: one iteration's.
        model, optimizer, scheduler: the run's.
        trained_only: whether the folder holds only weights that are trained. The others have been loaded then.

    Raises:
        UserError: a file is missing, damaged or refused, or holds something else than the state of such a run. Every
            rank raises it, and another checkpoint can be loaded into the same objects.
        RefusedOnEveryRank: a file cannot be read for a reason that lies outside of it.
    """
    state, same_layout = parallel.all_or_none(
        lambda: once_more(lambda: _asked_for(folder, model, optimizer, scheduler, trained_only))
    )
    loaded = load_checked(folder, state)
    # Looked through before any of it is used. So an error below is a bug of this program, and keeps its traceback.
    parallel.all_or_none(lambda: _check(folder, loaded, optimizer, scheduler))
    load_trained(module(model), loaded["model"])
    load_optimizer_state(optimizer, loaded["optimizer"])
    lengths = {name: getattr(scheduler, name) for name in _LENGTHS}
    scheduler.load_state_dict({**loaded["scheduler"], **lengths})
    if same_layout:
        parallel.all_or_none(lambda: _restore_rng(folder, loaded["rng"]))
    return RunProgress(**loaded["progress"])


def _asked_for(
    folder: Path, model: Any, optimizer: ChainedOptimizer, scheduler: Any, trained_only: bool
) -> tuple[dict[str, Any], bool]:
    """What is to be loaded, named as it was saved; and whether it was saved at this run's TP and PP."""
    progress = RunProgress(0, 0, 0, 0)
    state = run_state(model, optimizer, scheduler, progress, is_loading=True, trained_only=trained_only)
    recorded = read_run_config(folder) or {}
    if "use_distributed_optimizer" in recorded:
        name_as_saved(optimizer, state["optimizer"], with_zero=bool(recorded["use_distributed_optimizer"]))
    same_layout = _is_same_layout(folder)
    if not same_layout:
        del state["rng"]
    return state, same_layout


def _is_same_layout(folder: Path) -> bool:
    """Whether the checkpoint was saved at this run's TP and PP."""
    description = read_model_description(folder)
    return description is not None and (
        description.tensor_model_parallel_size == parallel_state.get_tensor_model_parallel_world_size()
        and description.pipeline_model_parallel_size == parallel_state.get_pipeline_model_parallel_world_size()
    )


def _restore_rng(folder: Path, stored: Any) -> None:
    problem = form_problem(stored, parallel.rng_state(), "rng")
    if problem is None:
        try:
            parallel.set_rng_state(stored)
        except _NO_STATE as error:
            problem = f"rng: {error}"
    if problem is not None:
        raise _not_such_a_state(folder, problem)


def _not_such_a_state(folder: Path, problem: str) -> UserError:
    return UserError(f"{folder} does not hold such a run's state ({problem[:300]}); go on from an earlier checkpoint.")


def _check(folder: Path, loaded: dict[str, Any], optimizer: ChainedOptimizer, scheduler: Any) -> None:
    """Raise unless what is no sharded tensor has the form in which this program saves it.

    What an earlier version did not save of the progress is filled in.
    """
    schedule = scheduler.state_dict()
    if isinstance(loaded.get("progress"), dict):
        loaded["progress"] = {**_LATER, **loaded["progress"]}
    like = {"progress": {field.name: 0 for field in fields(RunProgress)}, "scheduler": schedule, "optimizer": {}}
    problem = form_problem(loaded, like, "")
    if problem is None and set(loaded["progress"]) != set(like["progress"]):
        problem = f"progress holds {', '.join(map(repr, loaded['progress']))}"
    if problem is None and not all(_is_count(value) for name, value in loaded["progress"].items() if name != "best_loss"):
        problem = f"progress is {loaded['progress']}"
    if problem is None:
        problem = _schedule_problem(loaded["scheduler"], schedule) or _optimizer_problem(loaded["optimizer"], optimizer)
    if problem is not None:
        raise _not_such_a_state(folder, problem)


def _schedule_problem(stored: dict[str, Any], own: dict[str, Any]) -> str | None:
    """core asserts that a stored schedule is this run's own; a damaged one is said here instead."""
    if not _is_count(stored["num_steps"]):
        return f"scheduler.num_steps is {stored['num_steps']}"
    different = [name for name in own if name not in (*_LENGTHS, "num_steps") and stored[name] != own[name]]
    return f"scheduler.{different[0]} is {stored[different[0]]!r}, and {own[different[0]]!r} in this run" if different else None


def _optimizer_problem(stored: dict[str, Any], optimizer: ChainedOptimizer) -> str | None:
    """What is wrong with the learning rates, steps and loss scale beside the moments."""
    own, groups = optimizer.param_groups, stored_groups(stored)
    problem = form_problem(groups, [_GROUP_NUMBERS for _ in own], "param_groups")
    if problem is not None:
        return problem
    absent = [group for group in own if not any(_is_same_group(found, group) for found in groups)]
    if absent:
        return f"param_groups: none has { {key: absent[0].get(key) for key in _GROUP_KEYS} }"
    if not all(_is_count(group.get("step", 0)) for group in groups):
        return "param_groups count no steps"
    (inner,) = optimizer.chained_optimizers
    scaler = getattr(inner, "grad_scaler", None)
    if scaler is None or "grad_scaler" not in stored:
        return None
    return form_problem(stored["grad_scaler"], scaler.state_dict(), "grad_scaler")


def _is_same_group(stored: dict[str, Any], own: dict[str, Any]) -> bool:
    """Whether core would take one for the other; versions of core do not all have the same keys."""
    return all(stored[key] == own[key] for key in _GROUP_KEYS if key in stored and key in own)


def form_problem(found: object, like: object, name: str) -> str | None:
    """The first place where `found` has another form than `like`, as a phrase; None if it has the same.

    Dictionaries must have the keys of `like`, and may have more. Sequences must be as long, tensors of the same shape
    and dtype. Where `like` has a number or None, a number or None must be; where it has text, text.
    """
    if isinstance(like, dict):
        if not isinstance(found, dict):
            return f"{name or 'it'} is a {type(found).__name__}"
        missing = [key for key in like if key not in found]
        if missing:
            return f"{name} lacks {missing[0]!r}" if name else f"{missing[0]!r} is missing"
        pairs = [(found[key], value, f"{name}.{key}" if name else str(key)) for key, value in like.items()]
    elif isinstance(like, (list, tuple)):
        if not isinstance(found, (list, tuple)) or len(found) != len(like):
            return f"{name} is no list of {len(like)}"
        pairs = [(item, value, f"{name}[{place}]") for place, (item, value) in enumerate(zip(found, like))]
    elif isinstance(like, torch.Tensor):
        if isinstance(found, torch.Tensor) and (found.shape, found.dtype) == (like.shape, like.dtype):
            return None
        return f"{name} is no {like.dtype} of shape {list(like.shape)}"
    else:
        is_same = type(found) is type(like) or (_is_number(found) and _is_number(like))
        return None if is_same else f"{name} is {str(found)[:100]!r}"
    return next((problem for problem in (form_problem(*pair) for pair in pairs) if problem is not None), None)


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, (int, float))
