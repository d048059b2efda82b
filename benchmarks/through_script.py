"""Training speed of LLaMA-2 7B through the documented scripts: with their data loaders, read from their log lines.

    python benchmarks/through_script.py bf16 fp16 seed-example mbs2 seq4096 finetune
    python benchmarks/through_script.py finetune lora lora-mbs2 lora-none lora-full lora-least
    python benchmarks/through_script.py bf16 fp8 fp8-mbs2 fp8-seq4096    # one GPU with FP8 tensor cores
    python benchmarks/through_script.py bf16 dp2 tp2 pp2    # two GPUs
    python benchmarks/through_script.py bf16 dp4 tp4 tp2-dp2 pp2-dp2 pp4 tp2-pp2    # four
    python benchmarks/through_script.py bf16 dp8 tp2-dp4 tp4-dp2 tp8 pp2-dp4 tp2-pp2-dp2    # eight
    python benchmarks/through_script.py bf16 dp4 --peer torchtitan    # where torchtitan 0.2.2 is installed

It makes indexed data and a JSON file of random words, and starts each script as a user would. It reads tokens per
second from the console and ends the run after --iterations lines, before a checkpoint is written. CUDA_VISIBLE_DEVICES
may name the GPUs.

GPUs of one kind differ, so it first prints how fast this one multiplies. Then it prints for each shape:
- the median of tokens per second, without the first three lines: they include compilation, measurements of products and
  the recording of graphs;
- the ratio to one GPU, if `bf16` is among the shapes, and to the rate of products that are kept up;
- the seconds of the first iteration, and whether graphs were used; then how many steps were not finite, if any were.
With --peer torchtitan it then trains the same model on the same number of GPUs with that, for each shape without TP and
PP, and prints the fastest of its micro-batches.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import random
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import numpy as np

from peers import best_of_torchtitan
from children import alone, end_with_me, kill_tree
from train import describe, product_rates
from megatron_patch.records.indexed import token_dtype, write_index
from megatron_patch.llama.model_config import LLAMA_SIZES, TRAINING_SIZES

PRETRAIN = ROOT / "examples/llama2/run_pretrain_megatron_llama.sh"
FINETUNE = ROOT / "examples/llama2/run_finetune_megatron_llama.sh"
TOKENIZER = ROOT / "tests/golden/hf_mha"
DOCUMENTS, SAMPLES = 3000, 64
WARM_UP = 3

_PRETRAIN = dict(size="7B", mbs=1, gbs=8, seq=2048, pr="bf16", fl="true", tp=1, pp=1, gpus=1, flags=())
_TWO = {**_PRETRAIN, "gpus": 2, "gbs": 16}
_FOUR = {**_PRETRAIN, "gpus": 4, "gbs": 32}
_EIGHT = {**_PRETRAIN, "gpus": 8, "gbs": 64}
# LoRA of rank 16 on all linear layers; every one of PAD_LEN's positions is learnt.
_LORA = {**_PRETRAIN, "finetune": "long.json", "flags": ("--lora-rank", "16")}
SHAPES = {
    "bf16": _PRETRAIN,
    "bf16-single": {**_PRETRAIN, "flags": ("--pair-micro-batches", "false")},
    "fp16": {**_PRETRAIN, "pr": "fp16"},
    "seed-example": {**_PRETRAIN, "pr": "fp16", "fl": "false"},
    "fp8": {**_PRETRAIN, "pr": "fp8"},
    "fp8-mbs2": {**_PRETRAIN, "pr": "fp8", "mbs": 2},
    "fp8-seq4096": {**_PRETRAIN, "pr": "fp8", "seq": 4096, "gbs": 4},
    "fp8-dp2": {**_TWO, "pr": "fp8"},
    "fp8-tp2": {**_TWO, "pr": "fp8", "tp": 2},
    "fp8-dp4": {**_FOUR, "pr": "fp8"},
    "fp8-tiny": {**_PRETRAIN, "size": "tiny", "pr": "fp8", "seq": 128},
    "mbs2": {**_PRETRAIN, "mbs": 2},
    "seq4096": {**_PRETRAIN, "seq": 4096, "gbs": 4},
    "finetune": {**_PRETRAIN, "finetune": "long.json"},
    "lora": _LORA,  # AC sel, which with FL true is none
    "lora-none": {**_LORA, "ac": "none"},
    "lora-mbs2": {**_LORA, "mbs": 2},
    "lora-mbs4": {**_LORA, "mbs": 4},
    "lora-mbs8": {**_LORA, "mbs": 8},
    "lora-full": {**_LORA, "ac": "full"},
    "lora-full-mbs2": {**_LORA, "ac": "full", "mbs": 2},
    "lora-least": {**_LORA, "ac": "full", "flags": ("--lora-rank", "16", "--pair-micro-batches", "false")},
    "lora-qv": {**_LORA, "flags": ("--lora-rank", "16", "--lora-targets", "q_proj,v_proj")},
    "lora-dropout": {**_LORA, "flags": ("--lora-rank", "16", "--lora-dropout", "0.1")},
    "lora-fp8": {**_LORA, "pr": "fp8"},
    "lora-fp8-mbs2": {**_LORA, "pr": "fp8", "mbs": 2},
    "lora-dp2": {**_LORA, "gpus": 2, "gbs": 16},
    "lora-tp2": {**_LORA, "gpus": 2, "tp": 2},
    "lora-70b-tp2": {**_LORA, "size": "70B", "tp": 2, "gpus": 2},
    "lora-70b-tp4": {**_LORA, "size": "70B", "tp": 4, "gpus": 4, "mbs": 2},
    "qlora": {**_LORA, "flags": (*_LORA["flags"], "--qlora", "true")},
    "qlora-full": {**_LORA, "ac": "full", "flags": (*_LORA["flags"], "--qlora", "true")},
    "qlora-least": {
        **_LORA,
        "ac": "full",
        "flags": (*_LORA["flags"], "--qlora", "true", "--pair-micro-batches", "false"),
    },
    "qlora-70b": {**_LORA, "size": "70B", "ac": "full", "flags": (*_LORA["flags"], "--qlora", "true")},
    "lora-13b": {**_LORA, "size": "13B"},
    "tiny-qlora": {**_LORA, "size": "tiny", "seq": 128, "flags": (*_LORA["flags"], "--qlora", "true")},
    "tiny-lora": {**_LORA, "size": "tiny", "seq": 128},
    "finetune-packing": {**_PRETRAIN, "finetune": "short.json", "flags": ("--packing", "true")},
    "dp2": _TWO,
    "tp2": {**_TWO, "tp": 2},
    "pp2": {**_TWO, "pp": 2},
    "dp4": _FOUR,
    "tp4": {**_FOUR, "tp": 4},
    "tp2-dp2": {**_FOUR, "tp": 2},
    "pp2-dp2": {**_FOUR, "pp": 2},
    "pp4": {**_FOUR, "pp": 4},
    "tp2-pp2": {**_FOUR, "tp": 2, "pp": 2},
    "seed-example-dp4": {**_FOUR, "pr": "fp16", "fl": "false"},
    "13b-dp4": {**_FOUR, "size": "13B"},
    "dp8": _EIGHT,
    "tp2-dp4": {**_EIGHT, "tp": 2},
    "tp4-dp2": {**_EIGHT, "tp": 4},
    "tp8": {**_EIGHT, "tp": 8},
    "pp2-dp4": {**_EIGHT, "pp": 2},
    "tp2-pp2-dp2": {**_EIGHT, "tp": 2, "pp": 2},
    "seed-example-dp8": {**_EIGHT, "pr": "fp16", "fl": "false"},
    "fp8-dp8": {**_EIGHT, "pr": "fp8"},
    "13b-tp2-dp4": {**_EIGHT, "size": "13B", "tp": 2},
    "13b-dp8": {**_EIGHT, "size": "13B"},
    "70b-tp8": {**_EIGHT, "size": "70B", "tp": 8, "gbs": 8},  # 135 GiB a GPU
    "lora-70b-tp8": {**_LORA, "size": "70B", "tp": 8, "gpus": 8, "mbs": 2},
    "tiny": {**_PRETRAIN, "size": "tiny", "seq": 128},
    "tiny-finetune": {**_PRETRAIN, "size": "tiny", "seq": 128, "finetune": "long.json"},
}


def write_indexed(prefix: Path, vocabulary: int) -> None:
    """Write documents of random tokens, none of them special, enough for some hundred samples."""
    generator = np.random.default_rng(0)
    lengths = generator.integers(200, 4000, DOCUMENTS).astype(np.int32)
    dtype = token_dtype(vocabulary)
    generator.integers(3, vocabulary, int(lengths.sum())).astype(dtype).tofile(f"{prefix}.bin")
    with open(f"{prefix}.idx", "wb") as file:
        write_index(file, lengths, dtype)


def write_json(path: Path, samples: int, least: int, most: int) -> None:
    """Write samples with answers of `least` to `most` words."""
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(2000)]
    rows = [
        {"instruction": "Go on.", "output": " ".join(draw.choices(words, k=draw.randint(least, most)))} for _ in range(samples)
    ]
    path.write_text(json.dumps(rows), encoding="utf-8")


def command_of(shape: dict, folder: Path, output: Path) -> list[str]:
    """The command line of one shape, with the documented arguments."""
    engine, rates = "/root/Megatron-LM-230512", ("1e-5", "1e-6")
    layout = (
        shape["pr"],
        shape["tp"],
        shape["pp"],
        shape.get("ac", "sel"),
        "true",
        shape["fl"],
        "true" if shape["tp"] > 1 else "false",
    )
    if shape.get("finetune"):
        accumulate = shape["gbs"] // shape["mbs"]
        values = ["dsw", engine, ROOT, shape["size"], shape["mbs"], *rates, shape["seq"], shape["seq"], 0, *layout,
                  folder / shape["finetune"], folder / shape["finetune"], "none", 20, output]  # fmt: skip
        values += ["--tokenizer-path", TOKENIZER, "--gradient-accumulation-steps", accumulate]
    else:
        values = ["dsw", engine, ROOT, shape["size"], shape["mbs"], shape["gbs"], *rates, shape["seq"], 80, 0, *layout,
                  shape.get("save", 100000), folder / "corpus", "none", 100000000, 10000, output]  # fmt: skip
    return ["sh", str(FINETUNE if shape.get("finetune") else PRETRAIN), *map(str, values), *shape["flags"]]


# Profiles one iteration among those that are counted. The median of five lines does not depend on it and the next one.
_PROFILED = ("--profile", "true", "--profile-step-start", "5", "--profile-step-end", "6")


def keep_trace(output: Path, to: Path) -> None:
    """Copy the profiler's file, compressed."""
    (trace,) = output.glob("tensorboard/*_profile/*.pt.trace.json")
    with trace.open("rb") as read, gzip.open(to, "wb", 5) as written:
        shutil.copyfileobj(read, written)


def measure(name: str, folder: Path, options: argparse.Namespace) -> dict:
    """Run one shape and end it: tokens per second and GPU of each line, and what else its output says.

    Raises:
        SystemExit: the run ended by itself; its last lines are shown.
    """
    shape = SHAPES[name]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "0,1,2,3,4,5,6,7").split(",")
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ",".join(visible[: shape["gpus"]]), "PYTHON": sys.executable}
    with tempfile.TemporaryDirectory(dir=folder) as output:
        command = [*command_of(shape, folder, Path(output)), *(_PROFILED if options.traces else ())]
        if options.products and options.products.is_dir():
            shutil.copytree(options.products, Path(output) / "products")
        both = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        process = subprocess.Popen(command, env=environment, preexec_fn=end_with_me(), **both)
        overdue = threading.Timer(options.timeout, kill_tree, [process.pid])
        overdue.start()
        rates, losses, tail, memory, first, graphs = [], [], [], None, None, "?"
        for line in process.stdout:
            tail = [*tail[-60:], line]
            if options.echo:
                print(line, end="", flush=True)
            memory = re.search(r"max allocated: ([\d.]+)", line) or memory
            graphs = (re.search(r"CUDA graphs: (.+)", line) or [None, graphs])[1]
            first = first or re.search(r"iteration +1/.*elapsed time per iteration \(ms\): ([\d.]+)", line)
            found = re.search(r"tokens per second per GPU: (\d+)", line)
            rates += [float(found[1])] if found else []
            losses += re.findall(r"lm loss: (\S+)", line) if found else []
            if len(rates) >= options.iterations:
                break
        overdue.cancel()
        kill_tree(process.pid)
        process.wait()
        if options.traces and len(rates) >= options.iterations:
            keep_trace(Path(output), options.traces / f"{name}.json.gz")
        if options.products and (Path(output) / "products").is_dir():
            shutil.copytree(Path(output) / "products", options.products, dirs_exist_ok=True)
    if len(rates) < options.iterations:
        raise SystemExit(f"{' '.join(command)} ended early:\n{''.join(tail)}")
    return {
        "tokens_per_second": statistics.median(rates[WARM_UP:]),
        "lines": rates,
        "losses": losses,
        "max_allocated_mb": float(memory[1]) if memory else None,
        "first_iteration_ms": float(first[1]) if first else None,
        "graphs": graphs,
    }


def row_of(name: str, results: dict[str, dict]) -> str:
    """One line of the table. The ratio to the rate of products compares floating-point operations per second."""
    result, shape = results[name], SHAPES[name]
    model = LLAMA_SIZES[TRAINING_SIZES[shape["size"]]]
    rate, one = result["tokens_per_second"], results.get("bf16")
    products = results["products"]
    of_products = (
        rate * model.flops_per_token(shape["seq"], is_frozen="--lora-rank" in shape["flags"]) / 1e12 / products["kept_up"]
        if products
        else None
    )
    memory, first = result["max_allocated_mb"], result["first_iteration_ms"]
    cells = [
        f"{name:16} {rate:9.0f}",
        f"{rate / one['tokens_per_second']:9.1%}" if one and shape["size"] == "7B" else f"{'-':>9}",
        f"{of_products:9.1%}" if of_products else f"{'-':>9}",
        f"{memory / 1024:8.1f}" if memory else f"{'-':>8}",
        f"{first / 1000:8.1f}" if first else f"{'-':>8}",
        result["graphs"],
    ]
    wrong = len(result["lines"]) - len(result["losses"])
    if wrong and shape["pr"] != "fp16":  # whose first steps may look for a loss scale
        cells.append(f"WRONG: {wrong} of {len(result['lines'])} steps were not finite")
    return " ".join(cells)


def _peers(options: argparse.Namespace) -> list[tuple[str, int, int, int]]:
    """What a peer is measured at: size, GPUs, sequence length and global batch of the data-parallel bf16 shapes."""
    shapes = [SHAPES[name] for name in options.shapes if options.peer]
    plain = [shape for shape in shapes if shape["tp"] * shape["pp"] == 1 and shape["pr"] == "bf16" and not shape.get("finetune")]
    return sorted({(shape["size"], shape["gpus"], shape["seq"], shape["gbs"]) for shape in plain})


def main() -> None:
    """Parse, make data, run each shape, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="+", choices=SHAPES)
    parser.add_argument("--iterations", type=int, default=WARM_UP + 5, help="console lines to wait for")
    parser.add_argument("--timeout", type=float, default=600, help="seconds after which a run that prints too little is ended")
    parser.add_argument("--products", type=Path, help="folder in which measured products are kept from run to run")
    parser.add_argument("--traces", type=Path, help="folder in which the profiler's trace of one iteration is kept, NAME.json.gz")
    parser.add_argument("--peer", choices=["torchtitan"])
    parser.add_argument("--peer-batches", type=int, nargs="+", default=[2, 4], help="micro-batches that the peer tries")
    parser.add_argument("--no-rates", action="store_true", help="do not measure how fast this GPU multiplies")
    parser.add_argument("--echo", action="store_true", help="show the scripts' output")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    rates = None if arguments.no_rates else alone(product_rates)
    if not arguments.no_rates:
        print(describe(rates), flush=True)
    results: dict[str, dict] = {"products": rates}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = [LLAMA_SIZES[TRAINING_SIZES[SHAPES[shape]["size"]]] for shape in arguments.shapes]
        write_indexed(folder / "corpus", min(size.vocab_size for size in sizes))
        write_json(folder / "long.json", SAMPLES, 4000, 4000)  # above any PAD_LEN, so that every position is learnt
        write_json(folder / "short.json", 16 * SAMPLES, 10, 150)  # several go into a packed sequence
        print(f"{'shape':16} {'tokens/s':>9} {'of one':>9} {'of 8192³':>9} {'peak GiB':>8} {'first s':>8} graphs", flush=True)
        for shape in arguments.shapes:
            results[shape] = measure(shape, folder, arguments)
            print(row_of(shape, results), flush=True)
            if arguments.json:  # after each one, since whoever has a GPU for minutes may end this
                arguments.json.write_text(json.dumps(results, indent=1))
    for size, gpus, seq, gbs in _peers(arguments):
        print(best_of_torchtitan(size, gpus, seq, gbs, arguments), flush=True)


if __name__ == "__main__":
    main()
