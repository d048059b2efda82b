"""Saving a training checkpoint, by this project and by megatron-core: seconds, and host memory beyond the state.

    python benchmarks/checkpoint.py --hidden 2048 --layers 2

It makes a model with ZeRO's state in one process, on the GPU if there is one. Each way saves twice. The second time is
the one to look at, because core starts a process in its first save.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))


class PeakMemory:
    """A context that measures memory. `extra`: by how many bytes the resident memory of this process and its children
    rose at most while the block ran.
    """

    def __enter__(self) -> PeakMemory:
        import psutil

        self._process, self._ended, self.extra = psutil.Process(), threading.Event(), 0
        self._before = self._resident()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _resident(self) -> int:
        import psutil

        total = self._process.memory_info().rss
        for child in self._process.children(recursive=True):
            try:
                # Memory of its own only: a fork shares the state's pages with this process.
                total += child.memory_full_info().uss
            except psutil.NoSuchProcess:
                continue
        return total

    def _watch(self) -> None:
        while not self._ended.wait(0.02):
            self.extra = max(self.extra, self._resident() - self._before)

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()


def save_with_core(state, folder: Path) -> None:
    """Save the model and the optimizer by core's dist_checkpointing, as Megatron-LM does."""
    from megatron.core import dist_checkpointing

    metadata = {"distrib_optim_sharding_type": "fully_reshardable"}
    folder.mkdir(parents=True)
    weights = state.model.module.sharded_state_dict(metadata=metadata)
    optimizer = state.optimizer.sharded_state_dict(weights, is_loading=False, metadata=metadata)
    dist_checkpointing.save({"model": weights, "optimizer": optimizer}, str(folder), content_metadata=metadata)


def main() -> None:
    """Parse, save twice by each way, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=2048)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--folder", help="where to write; on the disk that is to be measured")
    arguments = parser.parse_args()
    import train as speed

    from megatron_patch.checkpoint.save import RunProgress, save_checkpoint
    from megatron_patch.config import Options
    from megatron_patch.core import device, parallel
    from megatron_patch.core.adam import Adam
    from megatron_patch.train.log import RunLog
    from megatron_patch.train.setup import build_state
    from megatron_patch.train.step import train_step

    base = Path(tempfile.mkdtemp(dir=arguments.folder))
    hidden, heads = arguments.hidden, arguments.hidden // 128
    sizes = dict(num_layers=arguments.layers, hidden_size=hidden, ffn_hidden_size=hidden * 11 // 4)
    model = replace(speed.LLAMA_SIZES["llama2-7b"], **sizes, num_attention_heads=heads, num_query_groups=heads)
    shape = {**speed.SHAPES["7b-bf16"], "seq": 32, "gbs": 1}
    config = replace(speed.config_of(shape, Options(), None), model=model, output_path=str(base))
    layout = speed.start(config)

    def trained_once():
        state = build_state(config, layout, RunLog(config, active=False), 10)
        train_step(state, speed.random_batches(config, layout))
        return state

    state = trained_once()
    Adam.split_parameters = lambda self: None  # core's save needs whole fp32 parameters
    whole = trained_once()

    def save(turn: int) -> None:
        save_checkpoint(config, state.model, state.optimizer, state.scheduler, RunProgress(turn, 0, 0, 0))

    ways = {"this project": save, "megatron-core": lambda turn: save_with_core(whole, base / f"core{turn}")}
    print(f"{model.parameter_count(0):,} parameters on {layout.device.type}")
    for name, way in ways.items():
        for turn in (1, 2):
            device.synchronize()
            os.sync()
            before = sum(path.stat().st_size for path in base.rglob("*") if path.is_file())
            started = time.perf_counter()
            with PeakMemory() as memory:
                way(turn)
            seconds = time.perf_counter() - started
            size = sum(path.stat().st_size for path in base.rglob("*") if path.is_file()) - before
            rates = f"{size / 1e9:6.2f} GB {seconds:7.2f} s {size / seconds / 1e6:6.0f} MB/s"
            print(f"{name:14} save {turn}: {rates}  {memory.extra / 1e9:6.2f} GB beyond the state", flush=True)
    parallel.stop()
    shutil.rmtree(base)


if __name__ == "__main__":
    main()
