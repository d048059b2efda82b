"""How long a conversion takes, compared with copying the same folder and with the disk, and how much memory it needs.

    python benchmarks/convert.py --size llama2-7b --rounds 3 --folder /path/on/the/disk/to/measure

It makes a model of random numbers. Then it repeats these steps --rounds times, each in a process of its own: `cp
-r` and `sync` of the Hugging Face folder, its conversion to Megatron, `fio`, and the same three for the way back.
`fio`, where it is installed, reads as many bytes as the weights have and writes as many at once: in blocks of 4
MiB, 32 in flight, past the page cache. Before each step the page cache is dropped, where that is permitted, and the
interpreter's own files are read again. So sources come from the disk, and the program does not. A ratio is to the
steps beside it in the round; its median counts. CPU seconds are user's and system's; where other programs share the
machine they say more than seconds. Peak memory is the largest resident memory of the converter's process, minus
that of an interpreter that has imported the same modules and done nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from megatron_patch.conversion.write import INDEX, write_json  # noqa: E402
from megatron_patch.formats.lazy import nbytes  # noqa: E402
from megatron_patch.weights.table import hf_shapes, places  # noqa: E402
from megatron_patch.formats.progress import Progress  # noqa: E402
from megatron_patch.formats.dtypes import WEIGHT_NAMES, of_name  # noqa: E402
from megatron_patch.formats.streaming import Item, partition, write_files, plan_safetensors  # noqa: E402
from megatron_patch.llama.model_config import LLAMA_SIZES, LlamaConfig, to_hf_config  # noqa: E402

_POOL = 8 << 20
_FIO, _FIO_BLOCK = "fio, reading and writing at once", 4 << 20
_SHARD_BYTES = 5 * 10**9
# What the converter's process runs: it converts and writes its peak memory into a file. Without arguments it only
# imports.
_CONVERTER = """
import sys
from megatron_patch.cli.convert import main
status = main(sys.argv[2:]) if sys.argv[2:] else 0
import megatron_patch.conversion.convert
from megatron_patch.formats.progress import peak_memory
open(sys.argv[1], "w").write(str(peak_memory()))
sys.exit(status)
"""


@dataclass(frozen=True)
class RandomTensor:
    """A lazy tensor of normal numbers with standard deviation 0.02. `seed` chooses where they are cut from one pool."""

    pool: torch.Tensor
    seed: int
    shape: tuple[int, ...]

    @property
    def dtype(self) -> torch.dtype:
        """That of the pool."""
        return self.pool.dtype

    def read(self, first: int, last: int, out: torch.Tensor) -> None:
        """Copy rows `first` to `last` − 1 into `out`, as `LazyTensor` says."""
        flat = out.view(-1)
        start = (self.seed * 7919 + first * 104729) % (self.pool.numel() // 2)
        for position in range(0, flat.numel(), self.pool.numel() // 2):
            rest = flat[position : position + self.pool.numel() // 2]
            rest.copy_(self.pool[start : start + rest.numel()])


@dataclass(frozen=True)
class Measurement:
    """One run of one command: what it was, and what it took."""

    what: str
    seconds: float
    cpu_seconds: float
    peak_bytes: int


def make_model(folder: Path, config: LlamaConfig, dtype: str) -> int:
    """Write a Hugging Face folder of random weights; returns its size in bytes."""
    folder.mkdir(parents=True)
    pool = torch.randn(_POOL, generator=torch.Generator().manual_seed(1)).mul_(0.02).to(of_name(dtype).torch_dtype)
    items = []
    for place in places(config):
        for name, shape in zip(place.hf_names, hf_shapes(config, place)):
            items.append(Item(name, RandomTensor(pool, len(items), shape), shape))
    total = sum(nbytes(item.tensor) for item in items)
    shards = partition(items, _SHARD_BYTES)
    named = [(f"model-{n:05d}-of-{len(shards):05d}.safetensors", part) for n, part in enumerate(shards, start=1)]
    with Progress("making the model", total) as progress:
        written = write_files(folder, named, plan_safetensors, progress.add)
    write_json(folder / INDEX, {"metadata": {}, "weight_map": {one.item.name: one.file for one in written}})
    write_json(folder / "config.json", to_hf_config(config, dtype=dtype))
    return total


def drop_caches() -> bool:
    """Write all dirty pages to the disk and empty the page cache; returns whether that is permitted."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")
    except OSError:
        return False
    return True


def measure(what: str, command: list[str], target: Path) -> Measurement:
    """Run `command`, which makes `target`. The page cache holds the interpreter and its libraries only."""
    shutil.rmtree(target, ignore_errors=True)
    drop_caches()
    imports_peak(target.parent)
    start, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, check=True)
    seconds, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{what}: {seconds:.1f} s, {processor:.1f} s of CPU", file=sys.stderr, flush=True)
    return Measurement(what, seconds, processor, int(_peak_file(target.parent).read_text()))


def copy(source: Path, target: Path, what: str) -> Measurement:
    """Copy a folder by `cp -r` and `sync`, and measure it."""
    return measure(what, ["sh", "-c", 'cp -r "$1" "$2" && sync', "sh", str(source), str(target)], target)


def disk(folder: Path, size: int) -> Measurement:
    """What fio takes to read `size` bytes of one file and to write as many into another at once."""
    options = {"directory": folder, "direct": 1, "ioengine": "libaio", "size": size // _FIO_BLOCK * _FIO_BLOCK, "bs": _FIO_BLOCK}
    both = [f"--{name}={value}" for name, value in (options | {"iodepth": 32, "end_fsync": 1}).items()]
    read, write = ["--name=read", "--filename=fio.read"], ["--name=write", "--rw=write", "--filename=fio.write"]
    if not (folder / "fio.read").exists():
        subprocess.run(["fio", *both, "--name=make", "--rw=write", "--filename=fio.read"], stdout=subprocess.DEVNULL, check=True)
    return measure(_FIO, ["fio", *both, *read, "--rw=read", *write], folder / "fio.write")


def conversion(source: Path, target: Path, to_hf: bool) -> Measurement:
    """Convert `source` to `target`, and measure it with its peak memory."""
    flags = {
        "--megatron-path": "none",
        "--source": str(source),
        "--target": str(target),
        "--tensor-model-parallel-size": "1",
        "--pipeline-model-parallel-size": "1",
        "--model-name": "auto",
        "--extra-vocab-size": "0",
        "--mg2hf": str(to_hf).lower(),
    }
    pairs = [text for pair in flags.items() for text in pair]
    what = "Megatron → Hugging Face" if to_hf else "Hugging Face → Megatron"
    return measure(what, [sys.executable, "-c", _CONVERTER, str(_peak_file(target.parent)), *pairs], target)


def _peak_file(folder: Path) -> Path:
    return folder / "peak"


def imports_peak(folder: Path) -> int:
    """Resident bytes of an interpreter that has imported what the converter imports."""
    command = [sys.executable, "-c", _CONVERTER, str(_peak_file(folder))]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, check=True)
    return int(_peak_file(folder).read_text())


def one_round(folder: Path, total: int) -> list[Measurement]:
    """Copy, convert, ask the disk; then the same with the way back."""
    measured = []
    for source, target, to_hf in (("hf", "megatron", False), ("megatron", "back", True)):
        what = f"cp -r, sync of the {'Megatron' if to_hf else 'Hugging Face'} folder"
        measured.append(copy(folder / source, folder / "copy", what))
        shutil.rmtree(folder / "copy")
        measured.append(conversion(folder / source, folder / target, to_hf))
        if shutil.which("fio"):
            measured.append(disk(folder, total))
            (folder / "fio.write").unlink()
    shutil.rmtree(folder / "back")
    shutil.rmtree(folder / "megatron")
    return measured


def summary(rounds: list[list[Measurement]], total: int, imports: int) -> list[dict[str, object]]:
    """A row for each command, with medians; for conversions also the ratios to the copy before and the disk after."""
    rows: list[dict[str, object]] = []
    for column, runs in enumerate(zip(*rounds)):
        seconds = statistics.median(run.seconds for run in runs)
        row: dict[str, object] = {
            "what": runs[0].what,
            "seconds": [round(run.seconds, 2) for run in runs],
            "median_seconds": round(seconds, 2),
            "median_cpu_seconds": round(statistics.median(run.cpu_seconds for run in runs), 2),
            "MB_per_second": round(total / 1e6 / seconds),
        }
        if "→" in runs[0].what:
            for name, other in (("cp", column - 1), ("fio", column + 1)):
                if name == "cp" or other < len(rounds[0]) and rounds[0][other].what == _FIO:
                    ratios = [one[column].seconds / one[other].seconds for one in rounds]
                    row[f"of_{name}"] = round(statistics.median(ratios), 2)
                    row[f"ratios_to_{name}"] = [round(ratio, 2) for ratio in ratios]
            row["peak_MiB_above_imports"] = round(max(run.peak_bytes - imports for run in runs) / 2**20)
        rows.append(row)
    return rows


def print_table(rows: list[dict[str, object]]) -> None:
    """Print `rows` as a Markdown table."""
    print("| | seconds (median) | CPU seconds | MB/s | of cp + sync | of fio | peak memory above imports |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        peak = f"{row['peak_MiB_above_imports']} MiB" if "peak_MiB_above_imports" in row else ""
        cells = [row[key] for key in ("what", "median_seconds", "median_cpu_seconds", "MB_per_second")]
        print("|", " | ".join(str(cell) for cell in (*cells, row.get("of_cp", ""), row.get("of_fio", ""), peak)), "|")


def main() -> None:
    """Parse, make the model, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=LLAMA_SIZES, default="llama2-7b")
    parser.add_argument("--layers", type=int, help="cut the model to so many layers")
    parser.add_argument("--dtype", choices=WEIGHT_NAMES, default="bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, required=True, help="on the disk to measure; a new folder in it is used")
    parser.add_argument("--json", type=Path, help="write the figures there as well")
    arguments = parser.parse_args()
    config = LLAMA_SIZES[arguments.size]
    config = replace(config, num_layers=arguments.layers or config.num_layers)
    folder = arguments.folder / f"convert-{os.getpid()}"
    try:
        total = make_model(folder / "hf", config, arguments.dtype)
        dropped = drop_caches()
        imports = imports_peak(folder)
        rows = summary([one_round(folder, total) for _ in range(arguments.rounds)], total, imports)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    print_table(rows)
    facts = {
        "size": arguments.size,
        "layers": config.num_layers,
        "dtype": arguments.dtype,
        "bytes": total,
        "page_cache_dropped": dropped,
        "imports_MiB": round(imports / 2**20),
        "cpu": f"{os.cpu_count()} × {platform.machine()}",
        "torch": torch.__version__,
        "rows": rows,
    }
    print(json.dumps(facts, ensure_ascii=False))
    if arguments.json:
        write_json(arguments.json, facts)


if __name__ == "__main__":
    main()
