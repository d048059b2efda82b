"""One of four processes (TP 2, DP 2) that save ZeRO's state with this project and load it with megatron-core."""

from __future__ import annotations

import sys
from pathlib import Path


def main(folder: str) -> None:
    """Save and load; raises AssertionError if a shard that core loaded differs from the one that was saved."""
    import megatron_patch.core.device  # noqa: F401

    import torch
    from megatron.core import dist_checkpointing

    from megatron_patch.checkpoint.contents import RunProgress, module
    from megatron_patch.checkpoint.optimizer_state import SHARDING
    from megatron_patch.checkpoint.save import save_checkpoint
    from megatron_patch.core import parallel
    from megatron_patch.core.adam import Adam
    from megatron_patch.train.log import RunLog
    from megatron_patch.train.setup import build_state
    from megatron_patch.train.step import train_step
    from tests.tiny import tiny_batches, tiny_config

    config = tiny_config(output_path=folder, tensor_model_parallel_size=2)
    layout = parallel.start(config)
    batch = next(tiny_batches(layout.data_parallel_rank, 1))
    states = [build_state(config, layout, RunLog(config, active=False), 4)]
    Adam.split_parameters = lambda self: None  # core's loader fills whole parameters
    states.append(build_state(config, layout, RunLog(config, active=False), 4))
    saved, loaded = ((state.model, state.optimizer, state.optimizer.chained_optimizers[0]) for state in states)
    for _ in range(2):
        train_step(states[0], iter([batch]))
    path = save_checkpoint(config, saved[0], saved[1], states[0].scheduler, RunProgress(2, 4, 0, 0))
    metadata = dict(SHARDING)
    weights = module(loaded[0]).sharded_state_dict(metadata=metadata)
    asked = {"optimizer": loaded[1].sharded_state_dict(weights, is_loading=True, metadata=metadata)}
    loaded[1].load_state_dict(dist_checkpointing.load(asked, str(Path(path)))["optimizer"])
    buckets = [bucket for ranges in saved[2].gbuf_ranges for found in ranges.values() for bucket in found]
    here = {parameter for bucket in buckets for parameter in bucket["param_map"]}
    for ours, theirs in zip(module(saved[0]).parameters(), module(loaded[0]).parameters(), strict=True):
        if ours in here:
            wanted, got = (o._get_main_param_and_optimizer_states(p) for o, p in ((saved[2], ours), (loaded[2], theirs)))
            wanted["param"] = saved[2].optimizer.value_in_gradient(wanted["param"])
            assert wanted.keys() == got.keys() == {"param", "exp_avg", "exp_avg_sq"}
            for name in wanted:
                assert wanted[name].abs().sum() > 0 and torch.equal(wanted[name], got[name]), (name, ours.shape)
    assert len(here) > 3
    parallel.stop()


if __name__ == "__main__":
    main(sys.argv[1])
