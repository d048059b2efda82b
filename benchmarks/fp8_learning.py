"""The same pre-training in bf16 and in fp8: a LLaMA of 110 million parameters on real text, same seed and order.

    python benchmarks/fp8_learning.py --tokens 50e6 --json curves.json
    python benchmarks/fp8_learning.py --seconds 90 --json curves.json
    python benchmarks/fp8_learning.py --draw curves.json curves.png    # where matplotlib is installed

The text is what a Python installation holds: sources, headers and documents, each once. A vocabulary of 16,384 is
learnt from a part of it, one file in fifty is held out, and the rest is one stream of tokens from which samples of
1,024 are drawn in an order that the seed decides. Every run trains through the training loop's own step, in a process
of its own, as many steps as make --tokens. With --seconds the first one is measured for a moment, and all get as many
as it does in that time, if these are fewer.

Validation losses are computed in bf16, as PR fp8 does. It prints each of them with its distance from the first run's of
the same step, and how far a training loss stands above those before it (a spike would show there). --json keeps the
curves, of a run that is cut off too.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import math
import statistics
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import megatron_patch.core.device as device
import numpy as np
import torch

from megatron_patch.config import Options, TrainConfig, one_process_config
from megatron_patch.core import parallel
from megatron_patch.kernels.fp8 import E4M3, E5M2
from megatron_patch.llama.model_config import LlamaConfig
from megatron_patch.model import fp8_linear
from megatron_patch.train.evaluation import evaluate
from megatron_patch.train.log import RunLog
from megatron_patch.train.product_choices import write_choices
from megatron_patch.train.setup import build_state
from megatron_patch.train.state import StepResult, TrainState
from megatron_patch.train.step import train_step
from children import alone
from train import start

ENDS = {".py", ".pyi", ".txt", ".rst", ".md", ".h", ".hpp", ".cuh", ".hxx", ".c", ".cpp", ".html", ".js", ".json"}
VOCABULARY = 16384
MODEL = LlamaConfig(12, 768, 2048, 12, 12, vocab_size=VOCABULARY, max_position_embeddings=1024)
SMALL = LlamaConfig(3, 128, 256, 4, 4, vocab_size=VOCABULARY, max_position_embeddings=64)
MICRO = {MODEL: 16, SMALL: 2}  # samples of a micro-batch; a step has four
EVALUATIONS, HELD_OUT, AT_END = 12, 4, 16  # evaluations of a run; global batches of one, and of what the report says
# Precision, gradients' dtype (None: training's own), layers at either end in bf16, what is added to the seed.
RUNS = {
    "bf16": ("bf16", None, 0, 0),
    "bf16, other weights": ("bf16", None, 0, 1),  # how far two runs are apart that differ in nothing but luck
    "fp8": ("fp8", None, 0, 0),
    "fp8 E5M2": ("fp8", E5M2, 0, 0),
    "fp8 E4M3": ("fp8", E4M3, 0, 0),
    "fp8 E4M3, ends in bf16": ("fp8", E4M3, 1, 0),
}


def texts(most: int) -> Iterator[tuple[bool, str]]:
    """(held out, text) of files below this Python's folders, at most so many bytes, each content once."""
    folders = {sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")}
    files = sorted({path for folder in folders for path in Path(folder).rglob("*") if path.suffix in ENDS and path.is_file()})
    np.random.default_rng(0).shuffle(files)
    seen, total = set(), 0
    for path in files:
        if not 200 <= path.stat().st_size <= 1 << 20:
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        mark = hashlib.sha1(text.encode(errors="ignore")).digest()
        if mark in seen:
            continue
        seen.add(mark)
        total += len(text)
        if total > most:
            return
        yield mark[0] % 50 == 0, text


def write_tokens(folder: Path, most: int) -> dict[str, int]:
    """Learn a vocabulary, and write train.bin and valid.bin of 16-bit tokens. Returns how many each has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    found = list(texts(most))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator((text for held_out, text in found[::8] if not held_out), trainer)
    counts = {}
    for name, held_out in (("train", False), ("valid", True)):
        with (folder / f"{name}.bin").open("wb") as file:
            part = [text for out, text in found if out == held_out]
            for first in range(0, len(part), 1000):
                for one in tokenizer.encode_batch_fast(part[first : first + 1000]):
                    file.write(np.asarray([*one.ids, 0], dtype=np.uint16).tobytes())
        counts[name] = (folder / f"{name}.bin").stat().st_size // 2
    return counts


def batches(path: Path, seed: int | None, model: LlamaConfig) -> Iterator[dict[str, torch.Tensor]]:
    """Endless micro-batches of a file's samples: in an order by `seed`, anew each time through; None: as they stand."""
    tokens, length, micro = np.memmap(path, dtype=np.uint16, mode="r"), model.max_position_embeddings, MICRO[model]
    count = (len(tokens) - 1) // length
    generator, mask = None if seed is None else np.random.default_rng(seed), torch.ones(micro, length)
    while True:
        order = np.arange(count) if generator is None else generator.permutation(count)
        for first in range(0, count - micro + 1, micro):
            rows = np.stack([tokens[at * length : (at + 1) * length + 1] for at in order[first : first + micro]])
            both = torch.from_numpy(rows.astype(np.int64))
            yield {"tokens": both[:, :-1].contiguous(), "labels": both[:, 1:].contiguous(), "loss_mask": mask}


def config_of(precision: str, steps: int, layers: int, model: LlamaConfig) -> TrainConfig:
    """The run: its rate rises for a twentieth of the steps and falls linearly to a tenth."""
    return one_process_config(
        model, model.max_position_embeddings, name="learning", use_distributed_optimizer=True, precision=precision,
        recompute="sel", use_flash_attn=True, micro_batch_size=MICRO[model], global_batch_size=4 * MICRO[model], lr=6e-4,
        min_lr=6e-5, train_iters=steps, warmup_iters=steps // 20, options=Options(fp8_layers=layers),
    )  # fmt: skip


def tokens_of_step(model: LlamaConfig) -> int:
    """Tokens of a global batch."""
    return 4 * MICRO[model] * model.max_position_embeddings


def measure(name: str, folder: Path, model: LlamaConfig) -> dict:
    """The seconds of a step, for `--seconds`."""
    known = []
    with training(name, folder, 1000, model) as (_, step):
        for _ in range(30 if model is MODEL else 6):
            step()
            known.append(time.perf_counter())
    return {"step_seconds": median_of(known)}


def learn(name: str, folder: Path, steps: int, model: LlamaConfig, others: list[dict], kept: Path | None) -> dict:
    """Train and evaluate on the way; print each evaluation, and keep the curves, behind those of the `others`.

    Returns:
        The run: training losses and gradients' norms of each step, validation losses by step and at the end of more
        batches, seconds, memory.
    """
    began = time.perf_counter()
    run = {"name": name, "train": [], "valid": [], "tokens_per_step": tokens_of_step(model)}
    with training(name, folder, steps, model) as (state, step):
        known = []
        for number in range(1, steps + 1):
            result = step()
            known.append(time.perf_counter())
            run["train"].append((result.loss, result.grad_norm))
            if number == 1:
                write_choices(state.config)  # the runs after this one need not measure the same products
            if number % max(1, steps // EVALUATIONS) and number != steps:
                continue
            run["valid"].append((number, held_out(state, folder, model, HELD_OUT)))
            if number == steps:
                run["end"] = held_out(state, folder, model, AT_END)
            run |= {"step_seconds": median_of(known), "seconds": time.perf_counter() - began}
            run["peak_gib"] = device.max_memory_allocated() / 2**30
            keep(kept, [*others, run])
            print(on_the_way(run, (others or [run])[0]), flush=True)
    return run


@contextlib.contextmanager
def training(name: str, folder: Path, steps: int, model: LlamaConfig) -> Iterator[tuple[TrainState, Callable[[], StepResult]]]:
    """The state of a run that begins, and what does its next step."""
    precision, kind, layers, other = RUNS[name]
    if kind is not None:
        fp8_linear.GRADIENTS = kind
    config = replace(config_of(precision, steps, layers, model), output_path=str(folder))
    layout = start(config)
    parallel.seed_everything(config.options.seed + other)
    state = build_state(config, layout, RunLog(config, active=False), steps)
    train = batches(folder / "train.bin", 1, model)

    def step() -> StepResult:
        result = train_step(state, train)
        state.scheduler.step(increment=1)
        return result

    yield state, step
    state.close()


def held_out(state: TrainState, folder: Path, model: LlamaConfig, count: int) -> float:
    """The mean loss over the first `count` global batches of what is held out."""
    sums = evaluate(state, batches(folder / "valid.bin", None, model), count)
    assert sums is not None, "nobody cuts it short"
    total, tokens = sums.tolist()
    return total / tokens


def median_of(known: list[float]) -> float:
    """The median seconds between two in a row of these times, without the first ones."""
    later = known[min(2, len(known) - 2) :] if len(known) > 1 else [0.0, 0.0]
    return statistics.median(after - before for before, after in zip(later, later[1:]))


def keep(path: Path | None, runs: list[dict]) -> None:
    """Write the curves, so that whoever cuts the program off has the old file or the new one."""
    if path is not None:
        beside = path.with_suffix(".new")
        beside.write_text(json.dumps({"runs": runs}))
        beside.replace(path)


def on_the_way(run: dict, first: dict) -> str:
    """One line about an evaluation."""
    number, loss = run["valid"][-1]
    reference = dict(map(tuple, first["valid"])).get(number, loss)
    recent = statistics.fmean(loss for loss, _ in run["train"][-50:])
    return (
        f"  {run['name']:22} step {number:5}: validation {loss:.4f} ({loss / reference - 1:+.2%}), last 50 training losses "
        f"{recent:.4f}, {run['tokens_per_step'] / run['step_seconds'] if run['step_seconds'] else 0:,.0f} tokens/s, "
        f"{run['seconds']:.0f} s"
    )


def report(result: dict, first: dict) -> str:
    """One line about a run, beside the first one."""
    losses = [loss for loss, _ in result["train"]]
    tail = losses[len(losses) // 10 :]
    smooth = [statistics.fmean(tail[at : at + 20]) for at in range(0, max(1, len(tail) - 20))]
    jump = max(loss - mean for loss, mean in zip(tail[20:], smooth)) if len(tail) > 20 else float("nan")
    end, reference = result["end"], first["end"]
    rate = result["tokens_per_step"] / result["step_seconds"]
    return (
        f"{result['name']:22} validation {end:.4f} ({end / reference - 1:+.2%}), last 50 training losses "
        f"{statistics.fmean(losses[-50:]):.4f}, most above the mean of the 20 before {jump:.3f}, largest gradient norm after "
        f"a tenth {max(norm for _, norm in result['train'][len(losses) // 10 :]):.2f}, {rate:,.0f} tokens/s, "
        f"{result['seconds']:.0f} s, {result['peak_gib']:.1f} GiB"
    )


def draw(curves: Path, picture: Path) -> None:
    """Training losses, the mean of 20 steps; and validation losses as distances from the first run's."""
    from matplotlib import pyplot

    runs = json.loads(curves.read_text())["runs"]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), dpi=120)
    wanted = dict(map(tuple, runs[0]["valid"]))
    for run in runs:
        millions, losses = run["tokens_per_step"] / 1e6, [loss for loss, _ in run["train"]]
        steps = range(20, len(losses) + 1)
        left.plot([n * millions for n in steps], [statistics.fmean(losses[n - 20 : n]) for n in steps], label=run["name"], lw=1)
        found = [(n * millions, 100 * (loss / wanted[n] - 1)) for n, loss in run["valid"]]
        right.plot(*zip(*found), label=run["name"], marker=".", lw=1)
    left.set(xlabel="million tokens", ylabel="training loss, mean of 20 steps")
    right.set(xlabel="million tokens", ylabel=f"validation loss, % above {runs[0]['name']}")
    left.legend(frameon=False, fontsize=8)
    figure.tight_layout()
    figure.savefig(picture)


def main() -> None:
    """Make the tokens, train each run, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=["bf16", "fp8"])
    parser.add_argument("--tokens", type=float, default=50e6, help="of a run")
    parser.add_argument("--seconds", type=float, help="at most so many of the first run's steps")
    parser.add_argument("--text", type=float, default=400e6, help="bytes of text, at most")
    parser.add_argument("--small", action="store_true", help="a model that a CPU can train, to try the program")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--draw", type=Path, nargs=2, metavar=("JSON", "PICTURE"), help="draw kept curves, and end")
    options = parser.parse_args()
    if options.draw:
        return draw(*options.draw)
    model = SMALL if options.small else MODEL
    print(f"{torch.cuda.get_device_name() if device.HAS_CUDA else 'CPU'}, {model.parameter_count(0):,} parameters", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder, began = Path(name), time.perf_counter()
        counts = write_tokens(folder, int(options.text))
        print(
            f"{counts['train']:,} tokens of text, {counts['valid']:,} held out, {time.perf_counter() - began:.0f} s", flush=True
        )
        each = tokens_of_step(model)
        steps = math.ceil(options.tokens / each)
        if options.seconds:
            steps = min(steps, int(options.seconds / alone(measure, options.runs[0], folder, model)["step_seconds"]))
        print(f"{steps} steps of {each:,} tokens, {steps * each / counts['train']:.2f} times the text", flush=True)
        results: list[dict] = []
        for run in options.runs:
            results.append(alone(learn, run, folder, steps, model, results, options.json))
            print(report(results[-1], results[0]), flush=True)
        print(f"{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
