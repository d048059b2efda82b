"""Runs as training leaves them, made without training.

`python -m tests.report.made_runs FOLDER` makes long ones to look at.
"""

from __future__ import annotations

import datetime
import json
import math
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from megatron_patch.config import TrainConfig
from megatron_patch.folders.metrics_file import METRICS, started_folder
from megatron_patch.llama.model_config import LLAMA_SIZES, TRAINING_SIZES
from tests.tiny import tiny_config

DAY = datetime.datetime(2026, 1, 31, 9, 0, 0, tzinfo=datetime.UTC)


def write_start(base: Path, config: TrainConfig, after: float, lines: list[tuple[str, dict[str, Any]]]) -> Path:
    """log/NAME_DATE/metrics.jsonl of one start; returns the file.

    Args:
        after: seconds from DAY to the start.
        lines: (kind, values); `values` may have `at`, seconds from the start.
    """
    began = DAY + datetime.timedelta(seconds=after)
    folder = base / "log" / started_folder(config.name, began)
    folder.mkdir(parents=True)
    with open(folder / METRICS, "w", encoding="utf-8") as stream:
        for kind, values in lines:
            rest = dict(values)
            now = began + datetime.timedelta(seconds=rest.pop("at", 0.0))
            stream.write(json.dumps({"kind": kind, "time": now.isoformat(), **rest}) + "\n")
    return folder / METRICS


def opening(config: TrainConfig, **machine: object) -> tuple[str, dict[str, Any]]:
    """A start's first line."""
    versions = {"megatron_patch": "0.3.0", "megatron_core": "0.16.1", "torch": "2.12.0", "cuda": "13.0", "python": "3.12.4"}
    found = {"device": "NVIDIA H200", "processes": 8, "processes_per_node": 8, "host": "dlc-worker-0", **machine}
    return "start", {"format": 1, "name": config.name, "arguments": config.as_dict(), "versions": versions, "machine": found}


def training(config: TrainConfig, iteration: int, at: float, **values: Any) -> tuple[str, dict[str, Any]]:
    """A training line."""
    samples = iteration * config.global_batch_size
    line = {"iteration": iteration, "consumed_samples": samples, "consumed_tokens": samples * config.sample_length}
    return "training", {**line, "at": at, **values}


def _curve(config: TrainConfig, first: int, last: int, seed: int, floor: float) -> Iterator[tuple[str, dict[str, Any]]]:
    """Lines of iterations first + 1 to `last`, as a run of LLaMA-2 might have them: warm-up, decay, noise, spikes."""
    draw, total, warm = random.Random(seed), config.train_iters, config.warmup_iters
    pace = config.global_batch_size * config.sample_length / 8 / 13500
    for iteration in range(first + 1, last + 1):
        at, progress = 40 + (iteration - first) * pace, iteration / total
        left = (total - iteration) / (total - warm)
        rate = config.lr * iteration / warm if iteration <= warm else config.min_lr + (config.lr - config.min_lr) * left
        spike = draw.uniform(1.0, 2.4) if draw.random() < 3 / total else 0.0
        smooth = floor + 8.6 * math.exp(-progress / 0.012) + 0.9 * (1 + progress / 0.03) ** -0.6
        norm = 0.28 + 2.2 * math.exp(-progress / 0.01) + abs(draw.gauss(0, 0.05)) + 8 * spike
        slow = draw.uniform(1.3, 3.0) if draw.random() < 0.002 else draw.gauss(1.0, 0.008)
        tokens = 13500 * 8 / slow
        yield training(
            config, iteration, at, loss=smooth + draw.gauss(0, 0.055) + spike, learning_rate=rate, grad_norm=norm, loss_scale=1.0,
            seconds_per_iteration=pace * slow, tokens_per_second=tokens, tokens_per_second_per_gpu=tokens / 8,
            tflops_per_gpu=tokens / 8 * 43e9 / 1e12, max_allocated_bytes=71_300_000_000 + (iteration > first + 100) * 900_000_000,
            skipped_iterations=0, nan_iterations=0,
        )  # fmt: skip
        if iteration % (total // 50) == 0:
            yield "validation", {**training(config, iteration, at)[1], "loss": smooth + 0.05 + draw.gauss(0, 0.01)}
        if iteration % (total // 10) == 0:
            yield "save", {"iteration": iteration, "at": at, "seconds": draw.uniform(38, 47), "bytes": 94_370_000_000}


def _long_config(lr: float, batch: int, total: int) -> TrainConfig:
    name = f"dlc-pretrain-megatron-llama-7B-lr-{lr:g}-bs-1-seqlen-4096-pr-bf16-tp-1-pp-1-ac-sel-do-true-sp-false-tt-{total}"
    data = "0.7 /mnt/data/wudao_llamabpe_text_document 0.3 /mnt/data/english_llamabpe_text_document"
    return tiny_config(
        name=name, model=LLAMA_SIZES[TRAINING_SIZES["7B"]], output_path="/mnt/output_megatron_llama2", train_data_path=data,
        lr=lr, min_lr=lr / 10, global_batch_size=batch, seq_length=4096, pad_length=4096, train_iters=total,
        warmup_iters=total // 50, save_interval=total // 10,
    )  # fmt: skip


def _data(config: TrainConfig) -> tuple[str, dict[str, Any]]:
    shares = [{"path": prefix, "share": weight, "tokens": 30_000_000_000} for weight, prefix in config.train_data.pairs]
    return "data", {"train_iters": config.train_iters, "tokens_per_sample": config.sample_length, "parts": shares}


def _stopped(lines: list[tuple[str, dict[str, Any]]], reason: str) -> list[tuple[str, dict[str, Any]]]:
    last = lines[-1][1]
    return [*lines, ("stop", {"iteration": last["iteration"], "reason": reason, "at": last["at"] + 50})]


def make_long_runs(base: Path) -> None:
    """Three runs to look at: 100,000 iterations in three starts, one that stopped, one that failed."""
    one, two, three = _long_config(1e-5, 256, 100_000), _long_config(3e-5, 512, 50_000), _long_config(6e-5, 512, 50_000)
    last = 0.0
    for first, end, reason, processes in ((0, 43_210, "", 8), (40_000, 71_500, "SIGTERM", 8), (71_500, 100_000, "finished", 16)):
        resumed = [("resume", {"iteration": first})] if first else []
        lines = [opening(one, processes=processes), *resumed, _data(one), *_curve(one, first, end, first, 1.72)]
        write_start(base, one, last, _stopped(lines, reason) if reason else lines)
        last += lines[-1][1]["at"] + 1800
    write_start(
        base, two, 3000, _stopped([opening(two), _data(two), *_curve(two, 0, 38_000, 4, 1.66)], "--exit-duration-in-mins")
    )
    failed = "error: CUDA out of memory. Tried to allocate 2.00 GiB."
    write_start(base, three, 6000, _stopped([opening(three), _data(three), *_curve(three, 0, 17_000, 5, 1.69)], failed))


if __name__ == "__main__":
    make_long_runs(Path(sys.argv[1]))
