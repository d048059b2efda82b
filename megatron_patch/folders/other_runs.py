"""Runs of one output folder that a run could go on from, told at its first start. Imports no torch.

NAME holds TP, PP, AC, SP, DO and BATCH_SIZE, none of which changes what is learnt. A run with another value of one gets
a folder of its own and begins anew, though a run of many days may stand beside it.
"""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from megatron_patch.config import TrainConfig
from megatron_patch.errors import UserError
from megatron_patch.folders.fingerprint import Origin
from megatron_patch.folders.layout import resolve_checkpoint
from megatron_patch.folders.recorded_run import Comparison, compare, read_run_config
from megatron_patch.folders.tracker import read_tracker

_MOST = 3


@dataclass(frozen=True)
class _Run:
    root: Path
    iteration: int
    found: Comparison


def offers(config: TrainConfig, origin: Origin) -> list[str]:
    """A sentence for each run beside `config`'s that differs only in what may change, furthest first; three at most.

    origin: what was observed of the files that `config` names.
    """
    beside, own = Path(config.checkpoint_folder).parent, os.path.realpath(config.checkpoint_folder)
    lines, runs = [], []
    for root in sorted(beside.iterdir()) if beside.is_dir() else []:
        if not root.is_dir() or os.path.realpath(root) == own:
            continue
        try:
            run = _candidate(config, origin, root)
        except (OSError, UserError) as error:
            lines.append(f"Whether this run could go on from {root} is not known: {error}")
        else:
            runs += [run] if run else []
    runs.sort(key=lambda run: run.iteration, reverse=True)
    return [_sentence(run) for run in runs[:_MOST]] + lines


def _candidate(config: TrainConfig, origin: Origin, root: Path) -> _Run | None:
    """The run below `root`; None where there is none, or one that learns something else."""
    if read_tracker(root) is None:
        return None
    location = resolve_checkpoint(root)
    recorded = read_run_config(location.folder) if location.iteration is not None else None
    if recorded is None:
        return None
    found = compare(config, origin, recorded, root)
    # Of fine-tuning, the global batch can be had back by a flag.
    hindering = len(found.hindering) - (found.accumulation is not None)
    return None if hindering else _Run(root, location.iteration or 0, found)


def _sentence(run: _Run) -> str:
    flags = f"--resume-from {shlex.quote(str(run.root))}"
    if run.found.accumulation is not None:
        flags += f" --gradient-accumulation-steps {run.found.accumulation}"
    differences = "; ".join(run.found.harmless + run.found.longer + run.found.hindering)
    what = f"differs only in what may change ({differences})" if differences else "has the same arguments under another name"
    return (
        f"This run begins anew. The run in {run.root}, which is at iteration {run.iteration}, {what}: "
        f"to go on from it, add {flags} after the last argument."
    )
