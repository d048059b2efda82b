"""Writing a training checkpoint tensor by tensor, from the device to the disk.

core's own writer first copies everything that a rank saves into host memory (LLaMA-2 7B: 94 GB), and starts a process that
imports everything again to hand the results of others over. torch's keeps a few megabytes on their way. Both write the same
files.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from pathlib import Path
from typing import Any

import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    TorchDistSaveShardedStrategy,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)

_THREADS = 2  # files of a rank, written side by side


class StreamingSave(TorchDistSaveShardedStrategy):
    """core's torch_dist strategy with torch's own writer."""

    def __init__(self) -> None:
        super().__init__("torch_dist", 1)

    def save(self, sharded_state_dict: dict[str, Any], checkpoint_dir: str | Path) -> None:
        """Write what this rank is the first to have; every rank calls it."""
        mine, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded_state_dict, self.keep_only_main_replica)
        dcp.save(
            mcore_to_pyt_state_dict(mine),
            storage_writer=dcp.FileSystemWriter(checkpoint_dir, thread_count=_THREADS),
            planner=MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False),
        )
