"""Where the seconds go from the death of a rank to the next optimizer step of the run that torchrun starts again.

    python benchmarks/recovery.py bf16 --folder /dev/shm
    python benchmarks/recovery.py tiny

It starts the documented pre-training script on random data, with MAX_RESTARTS 1, waits for a checkpoint and an
iteration more, and kills a rank by SIGKILL. Shapes are those of benchmarks/through_script.py. LLaMA-2 7B's checkpoint
takes 94 GB below --folder; on a RAM disk give --flags "--async-save false", where memory does not hold the state too.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import psutil

from megatron_patch.llama.model_config import LLAMA_SIZES, TRAINING_SIZES
from children import end_with_me, kill_tree
from through_script import SHAPES, command_of, write_indexed

EVERY = 4  # iterations from a save to the next

# What has been done when a line with these words comes.
STAGES = (
    ("torchrun has noticed it", "the run is started again"),
    ("a rank has started, imported and joined", "has started and imported in"),
    ("data and model are there", "LLaMA with"),
    ("the checkpoint is found", "  reading the checkpoint"),
    ("it is read", "  going on from iteration"),
    ("the next step is done", r"\] iteration +\d+/"),
)


def ranks(launcher: int) -> list[psutil.Process]:
    """torchrun's training processes."""
    return [one for one in psutil.Process(launcher).children() if "RANK" in one.environ()]


def measure(shape: dict, folder: Path, flags: list[str], echo: bool, timeout: float) -> None:
    """Run, kill, and print the time of each stage.

    Raises:
        SystemExit: the run ended, or took too long, before the last one.
    """
    environment = {**os.environ, "PYTHON": sys.executable, "MAX_RESTARTS": "1", "GPUS_PER_NODE": str(shape["gpus"])}
    command = [*command_of({**shape, "save": EVERY}, folder, folder / "out"), *flags]
    both = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    process = subprocess.Popen(command, env=environment, preexec_fn=end_with_me(), **both)
    assert process.stdout is not None
    overdue = threading.Timer(timeout, kill_tree, [process.pid])
    overdue.start()
    saved, killed, last, passed, tail = False, 0.0, 0.0, 0, []
    try:
        for line in process.stdout:
            now, tail = time.perf_counter(), [*tail[-60:], line]
            if echo:
                print(line, end="", flush=True)
            if not killed:
                if saved and re.search(STAGES[-1][1], line):
                    killed = last = time.perf_counter()
                    ranks(process.pid)[0].kill()
                saved = saved or "saved checkpoint of iteration" in line
            elif re.search(STAGES[passed][1], line):
                said = re.search(r"(?:started and imported|read) in [^()]*", line)
                print(f"{now - last:7.2f} s  {STAGES[passed][0]}{f' ({said[0]})' if said else ''}", flush=True)
                last, passed = now, passed + 1
                if passed == len(STAGES):
                    print(f"{now - killed:7.2f} s  in all")
                    return
    finally:
        overdue.cancel()
        kill_tree(process.pid)
    raise SystemExit(f"{' '.join(command)} ended early:\n{''.join(tail)}")


def main() -> None:
    """Parse, make data, measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--folder", help="where data and checkpoints are; on the disk that is to be measured")
    parser.add_argument("--flags", default="", help="more of the script's, in one word")
    parser.add_argument("--timeout", type=float, default=540, help="seconds after which the run is ended")
    parser.add_argument("--echo", action="store_true", help="show the script's output")
    arguments = parser.parse_args()
    shape = SHAPES[arguments.shape]
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        write_indexed(Path(name) / "corpus", LLAMA_SIZES[TRAINING_SIZES[shape["size"]]].vocab_size)
        measure(shape, Path(name), arguments.flags.split(), arguments.echo, arguments.timeout)


if __name__ == "__main__":
    main()
