"""One of several processes that save one state twice, while they wait and beside the next step."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path


def main(folder: str, tp: str, pp: str, zero: str) -> None:
    """Save and compare; raises AssertionError if a byte differs, or if one rank writes much more than another."""
    import megatron_patch.core.device  # noqa: F401

    from megatron_patch.checkpoint.background import BackgroundSaves
    from megatron_patch.checkpoint.run_progress import RunProgress
    from megatron_patch.checkpoint.save import save_checkpoint
    from megatron_patch.checkpoint.staging import Staging
    from megatron_patch.core import parallel
    from megatron_patch.train.log import RunLog
    from megatron_patch.train.setup import build_state
    from megatron_patch.train.step import train_step
    from tests.tiny import tiny_batches, tiny_config

    config = tiny_config(
        output_path=f"{folder}/waiting",
        tensor_model_parallel_size=int(tp),
        pipeline_model_parallel_size=int(pp),
        use_distributed_optimizer=zero == "true",
        global_batch_size=4,
    )
    layout = parallel.start(config)
    state = build_state(config, layout, RunLog(config, active=False), 4)

    def step() -> None:
        train_step(state, tiny_batches(layout.data_parallel_rank, 4 // layout.data_parallel_size))

    step()
    step()
    parts = (state.model, state.optimizer, state.scheduler, RunProgress(2, 8, 0, 0))
    waiting = save_checkpoint(config, *parts)
    Staging.lazy = True
    background = BackgroundSaves(replace(config, output_path=f"{folder}/beside"))
    state.background = background
    for _ in range(2):  # the second time memory, process and tensors are known
        assert not background.begin(*parts, state.origin, only_best=False)
        step()
        outcome = background.wait()
        assert not outcome.refusal, outcome
        if layout.rank == 0:
            compare(waiting, outcome.folder, layout.world_size)
        waiting = save_checkpoint(config, *parts)
    background.close()
    parallel.any_rank(False)
    parallel.stop()


def compare(waiting: Path, beside: Path, ranks: int) -> None:
    """All files but run_config.json, which names OUTPUT_BASEPATH, and its sum in model.json."""
    names = sorted(path.name for path in waiting.iterdir())
    assert names == sorted(path.name for path in beside.iterdir())
    described = [json.loads((folder / "model.json").read_text()) for folder in (waiting, beside)]
    for one in described:
        one["crc32"] |= {"run_config.json": "", "model.json": ""}
    assert described[0] == described[1]
    for name in set(names) - {"run_config.json", "model.json"}:
        assert (waiting / name).read_bytes() == (beside / name).read_bytes(), name
    sizes = [sum(path.stat().st_size for path in waiting.glob(f"__{rank}_[0-9].distcp")) for rank in range(ranks)]
    assert min(sizes) > 0.8 * max(sizes), sizes


if __name__ == "__main__":
    main(*sys.argv[1:])
