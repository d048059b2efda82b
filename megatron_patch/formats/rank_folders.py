"""Which file holds which rank's weights in a checkpoint of 2023. Imports no torch."""

from __future__ import annotations

import re
from pathlib import Path

from megatron_patch.errors import UserError

_RANK = re.compile(r"mp_rank_(\d{2,3})(?:_(\d{3}))?(?:_(\d{3}))?")
_NAMES = ("model_optim_rng.pt", "model_rng.pt")


def rank_files(folder: Path) -> tuple[tuple[Path, ...], ...]:
    """The files of weights below `folder`: [pipeline stage][tensor-parallel rank].

    A folder that holds optimizer state alone is left out. Until September 2023 the distributed optimizer wrote one for
    each data-parallel rank, such as `mp_rank_00_007/optim.pt` beside `mp_rank_00/model_rng.pt`.

    Raises:
        UserError: a rank is missing, is there twice, or its folder holds no weights.
    """
    paths: dict[tuple[int, int], Path] = {}
    for rank in sorted(folder.iterdir()):
        match = _RANK.fullmatch(rank.name)
        if match and not (rank / "optim.pt").is_file():
            place = int(match[2] or 0), int(match[1])
            if place in paths:
                raise UserError(f"{paths[place].parent} and {rank} are the same rank of two checkpoints; keep one of them there.")
            paths[place] = _weights_file(rank)
    if not paths:
        raise UserError(f"{folder} holds no mp_rank_ folder with weights; copy the checkpoint again.")
    stages, width = max(stage for stage, _ in paths) + 1, max(tp for _, tp in paths) + 1
    for stage in range(stages):
        for tp in range(width):
            if (stage, tp) not in paths:
                name = f"mp_rank_{tp:02d}" + (f"_{stage:03d}" if stages > 1 else "")
                raise UserError(f"{folder / name} is missing, and ranks beyond it are there; copy the checkpoint again.")
    return tuple(tuple(paths[stage, tp] for tp in range(width)) for stage in range(stages))


def _weights_file(rank: Path) -> Path:
    """The file of weights in a rank's folder; UserError if there is none."""
    for name in _NAMES:
        if (rank / name).is_file():
            return rank / name
    raise UserError(f"{rank} holds neither {' nor '.join(_NAMES)}; copy the checkpoint again.")
