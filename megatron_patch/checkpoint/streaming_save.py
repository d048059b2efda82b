"""Writing a training checkpoint tensor by tensor, from the device to the disk.

core's own writer first copies everything that a rank saves into host memory (LLaMA-2 7B: 94 GB), and starts a process that
imports everything again to hand the results of others over. torch's keeps a tensor for each file that it writes at the moment.
Both write the same files. What core 0.19 keeps among the objects is written as common.pt all the same, as before, so that every
core reads it.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)

from megatron_patch.formats.distcp_metadata import COMMON, write_backends
from megatron_patch.formats.progress import Progress

_THREADS = 2  # files of a rank, written side by side


class _Planner(MCoreSavePlanner):
    """core's planner, which counts the bytes that are handed to the writer."""

    def __init__(self, progress: Progress | None) -> None:
        super().__init__(dedup_replicated_tensors=False, flatten_state_dict=False)
        self._progress = progress

    def resolve_data(self, write_item: Any) -> Any:
        data = super().resolve_data(write_item)
        if self._progress is not None and isinstance(data, torch.Tensor):
            self._progress.add(data.nbytes)
        return data


def save_streaming(state: dict[str, Any], folder: Path, content: dict[str, Any]) -> None:
    """What `dist_checkpointing.save` writes of `state` into the empty `folder`, its steps taken one by one; every rank calls it.

    Args:
        content: what the checkpoint says about itself, plain values; core keeps it as content_metadata in common.pt.
    """
    sharded, common = save_preprocess({**state, "content_metadata": content})
    first = torch.distributed.get_rank() == 0
    if first:
        torch.save(common, folder / COMMON)
    _write(sharded, folder)
    if first:
        write_backends(folder)
    torch.distributed.barrier()


def _write(sharded: dict[str, Any], folder: Path) -> None:
    """Write what this rank is the first to have."""
    mine, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded, keep_only_main_replica=True)
    total = sum(entry.data.nbytes for entries in mine.values() for entry in entries if isinstance(entry.data, torch.Tensor))
    # Ranks have like amounts to write, so the first speaks for all.
    with Progress("saving", total) if torch.distributed.get_rank() == 0 else nullcontext() as progress:
        writer = dcp.FileSystemWriter(folder, thread_count=_THREADS)
        dcp.save(mcore_to_pyt_state_dict(mine), storage_writer=writer, planner=_Planner(progress))
