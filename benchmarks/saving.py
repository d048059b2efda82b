"""What a checkpoint costs a training run: for how long the loop stands still, and how much slower the next steps are.

    python benchmarks/saving.py 7b-bf16 --layers 20 --folder /dev/shm
    python benchmarks/saving.py 7b-bf16 --processes 2 --folder /dev/shm     # data parallel
    python benchmarks/saving.py tiny-bf16 --steps 8

It trains on random tokens, with the loop of a real run, and saves every --steps iterations: with --async-save true and
then false. On a RAM disk a checkpoint takes memory beside the copy of the state: LLaMA-2 7B's state is 81 GB and its
files are 94 GB, so --layers cuts the model where the machine has less (20 of 32 layers: 52 and 60 GB). Only the newest
checkpoint is kept, and it goes before the next save.

An iteration's time is that between two losses. The one after a save begins with it, and the next two may wait for the
copy of the state; what these three take beyond the median of undisturbed iterations is the time that the loop stood
still. The others until the checkpoint is complete are those beside which it is written.
"""

from __future__ import annotations

import argparse
import gc
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

from children import together

WAITING = 3  # iterations after a save that may wait for it
WARM_UP = 6


class Enough(Exception):  # noqa: N818  how the run is ended without a last save
    """All saves have been measured."""


class Samples:
    """Random samples of `length` tokens."""

    def __init__(self, vocabulary: int, length: int) -> None:
        import torch

        self._tokens = torch.randint(0, vocabulary, (1024, length + 1), generator=torch.Generator().manual_seed(1))

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, index: int) -> dict:
        import torch

        row = self._tokens[index]
        return {"tokens": row[:-1], "labels": row[1:], "loss_mask": torch.ones(len(row) - 1)}


class Watch:
    """A log that notes when each loss and each checkpoint was there.

    Args:
        root: the run's checkpoints.
        last: the iteration after which the run is ended.
    """

    active = True

    def __init__(self, root: Path, steps: int, last: int) -> None:
        self._root, self._steps, self._last = root, steps, last
        self._is_first = os.environ["RANK"] == "0"
        self.known: dict[int, float] = {}
        self.saves: list[tuple[int, float, float, int]] = []  # iteration, when it was told, seconds, bytes
        self.files: list[int] = []  # bytes of those of the last one's tensors

    def step(self, iteration: int, loss: float | None) -> None:
        """Note when the loss was there; make room for the next checkpoint; end the run after the last iteration."""
        self.known[iteration] = time.perf_counter()
        if self._is_first and iteration > self._steps and iteration % self._steps == self._steps - WARM_UP:
            for folder in self._root.glob("iter_*[0-9]"):
                shutil.rmtree(folder)
        if iteration == self._last:
            raise Enough

    def event(self, kind: str, **values: object) -> None:
        """Note a checkpoint that is complete."""
        if kind == "save":
            self.saves.append((values["iteration"], time.perf_counter(), values["seconds"], values["bytes"]))
            newest = max(self._root.glob("iter_*[0-9]"))
            self.files = [file.stat().st_size for file in sorted(newest.glob("*.distcp"))]

    def line(self, text: str) -> None:
        """Print it."""
        if self._is_first:
            print(text, flush=True)

    warn = iteration_line = line

    def _nothing(self, *_: object) -> None:
        """It is no sink."""

    began = numbers = make_room = _nothing


def measure(shape: str, layers: int | None, base: str, steps: int, saves: int, way: str) -> None:
    """Train, save `saves` times, print."""
    import train as speed

    from megatron_patch.config import Options
    from megatron_patch.data.batches import RunData, plan_of
    from megatron_patch.train import loop
    from megatron_patch.train.setup import build_state

    processes = int(os.environ["WORLD_SIZE"])
    config = speed.config_of(speed.SHAPES[shape], Options(num_workers=0, async_save=way), layers)
    config = replace(
        config,
        output_path=base,
        save_interval=steps,
        train_iters=steps * (saves + 2),
        global_batch_size=processes * config.global_batch_size,
    )
    layout = speed.start(config)
    watch = Watch(Path(config.checkpoint_folder), steps, steps * (saves + 1) - 1)
    state = build_state(config, layout, watch, config.train_iters)
    samples = Samples(config.vocab_size, config.seq_length)
    data = RunData(samples, plan_of(config, processes, len(samples), shuffled=True), (), config.train_iters, 0, steps)
    try:
        loop.run(state, data, watch)
    except Enough:
        if os.environ["RANK"] == "0":
            report(watch, way, steps)
            print(f"  files of the last one, GB: {' '.join(f'{size / 1e9:.2f}' for size in watch.files)}")
    state.close()


def report(watch: Watch, way: str, steps: int) -> None:
    """Print the figures of each save."""
    times = {number: watch.known[number] - watch.known[number - 1] for number in watch.known if number - 1 in watch.known}
    busy: set[int] = set()
    removals: set[int] = set()  # iterations in which old checkpoints go, which takes seconds on a RAM disk
    for iteration, told, _, _ in watch.saves:
        busy.update(range(iteration, iteration + WAITING + 2))
        busy.update(n for n in times if n > iteration and watch.known[n - 1] < told + times[n])
        removed = iteration + steps - WARM_UP
        removals.update(range(removed, removed + 3))
    busy |= removals
    quiet = statistics.median(seconds for number, seconds in times.items() if number not in busy and number > WARM_UP)
    print(f"--async-save {way}: an undisturbed iteration takes {quiet:.3f} s")
    for iteration, told, seconds, size in watch.saves:
        after = [times[n] for n in range(iteration + 1, iteration + 1 + WAITING) if n in times]
        stood = sum(after) - len(after) * quiet
        beside = [times[n] for n in times if n > iteration + WAITING and n not in removals and watch.known[n] < told]
        slower = f"{100 * (statistics.mean(beside) / quiet - 1):+.1f} % ({len(beside)} iterations)" if beside else "none"
        print(
            f"  iteration {iteration}: {size / 1e9:.1f} GB in {seconds:.2f} s ({size / seconds / 1e9:.2f} GB/s); the loop stood "
            f"still for {stood:.3f} s ({', '.join(f'{one:.3f}' for one in after)}); iterations beside it: {slower}"
        )


def main() -> None:
    """Parse, and measure each way in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", help="one of benchmarks/train.py's")
    parser.add_argument("--layers", type=int, help="of the model; all of them if left out")
    parser.add_argument("--folder", help="where to write; on the disk that is to be measured")
    parser.add_argument("--steps", type=int, default=30, help="iterations from a save to the next")
    parser.add_argument("--saves", type=int, default=2)
    parser.add_argument("--processes", type=int, default=1, help="data parallel, one a GPU; the global batch grows with them")
    parser.add_argument("--ways", default="true,false", help="values of --async-save")
    arguments = parser.parse_args()
    from megatron_patch.arguments.processes import free_port

    os.environ.setdefault("MASTER_PORT", str(free_port()))
    for way in arguments.ways.split(","):
        base = tempfile.mkdtemp(dir=arguments.folder)
        try:
            what = (arguments.shape, arguments.layers, base, arguments.steps, arguments.saves, way)
            together(arguments.processes, measure, *what)
        finally:
            shutil.rmtree(base, ignore_errors=True)
            gc.collect()


if __name__ == "__main__":
    main()
