"""Pre-training data: `.bin`/`.idx` pairs through megatron-core's GPTDataset, alone or as a weighted blend, or JSON."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

from megatron_patch.config import TrainConfig
from megatron_patch.core.parallel import Layout
from megatron_patch.data.json_pretrain import json_run_data
from megatron_patch.data.run_data import RunData
from megatron_patch.data.run_tokenizer import run_tokenizer
from megatron_patch.data.samplers import BatchPlan
from megatron_patch.data.splits import repetitions, usable_split
from megatron_patch.data_paths import is_json, parse_data_path
from megatron_patch.errors import UserError
from megatron_patch.records.indexed import lengths_fingerprint


def pretrain_run_data(config: TrainConfig, layout: Layout, say: Callable[[str], None]) -> RunData:
    """The data of DATASET_PATH for TRAIN_TOKENS, evaluated every `--eval-interval` iterations."""
    if is_json(config.train_data_path):
        return json_run_data(config, layout, say)
    options = config.options
    pairs = parse_data_path(config.train_data_path)
    split = usable_split(options.split, pairs, config.seq_length, _sample_counts(config))
    for line in repetitions(split, pairs, config.seq_length):
        say(f"  {line}")
    train, valid = _gpt_datasets(config, split, run_tokenizer(config, text=False))

    def plan(samples: int) -> BatchPlan:
        return BatchPlan(samples, config.global_batch_size, config.micro_batch_size, layout.data_parallel_size)

    if valid is None and options.eval_interval and options.eval_iters:
        say(f"  the split {options.split} leaves no validation data; evaluation is skipped")
    return RunData(
        train=train,
        valid=valid,
        plan=plan(config.train_iters * config.global_batch_size),
        valid_plan=plan(_evaluations(config) * options.eval_iters * config.global_batch_size) if valid else None,
        train_iters=config.train_iters,
        eval_batches=options.eval_iters if options.eval_interval else 0,
        eval_every=options.eval_interval,
        save_every=config.save_interval,
    )


def _evaluations(config: TrainConfig) -> int:
    """One every `--eval-interval` iterations and one at the end."""
    return config.train_iters // config.options.eval_interval + 1 if config.options.eval_interval else 0


def _sample_counts(config: TrainConfig) -> list[int]:
    """Samples for training, validation and test that the run takes."""
    batches = (config.train_iters, _evaluations(config) * config.options.eval_iters, 0)
    return [count * config.global_batch_size for count in batches]


def _gpt_datasets(config: TrainConfig, split: str, tokenizer: Any) -> tuple[Any, Any | None]:
    """Training and validation samples of SEQ_LEN tokens, as many as the run takes; None where the split leaves none.

    Raises:
        UserError: the split leaves no training data; a pair or a file of indices is damaged.
    """
    pairs = parse_data_path(config.train_data_path)
    prefixes, weights = [prefix for _, prefix in pairs], [weight for weight, _ in pairs]
    options = config.options
    folder = Path(config.output_path) / "data_cache" / f"samples-{_same_on_all_ranks(prefixes)}"
    gpt = GPTDatasetConfig(
        random_seed=options.seed,
        sequence_length=config.seq_length,
        blend=(prefixes, weights if len(pairs) > 1 else None),
        split=split,
        path_to_cache=str(folder),
        tokenizer=tokenizer,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    with _damage_named(folder):
        train, valid, _ = BlendedMegatronDatasetBuilder(GPTDataset, _sample_counts(config), lambda: True, gpt).build()
    if train is None:
        raise UserError(f"The split {split} leaves no training data in {config.train_data_path}.")
    return train, valid


def _same_on_all_ranks(prefixes: list[str]) -> str:
    """`lengths_fingerprint` as the first rank reads the pairs: it makes the indices, the others map what it made.

    core names indices after the prefix and the run's numbers alone, so a pair that was prepared anew would be read with the
    old one's. Not by time stamps: a copy of a pair keeps its indices, and nodes need not agree on a file's times.
    """
    distributed = torch.distributed.is_initialized()
    name = [lengths_fingerprint(prefixes) if not distributed or torch.distributed.get_rank() == 0 else ""]
    if distributed:
        torch.distributed.broadcast_object_list(name, src=0)
    return name[0]


@contextmanager
def _damage_named(folder: Path) -> Iterator[None]:
    """Turn a failure into a UserError that names the damaged file, where there is one; core's own errors name none.

    core writes indices in place, so a run that was killed, or a full disk, leaves one cut short, which the next start takes.
    """
    try:
        yield
    except Exception as error:
        damaged = next(filter(None, map(_damage, sorted(folder.glob("*.npy")))), None)
        if damaged is None:
            raise
        raise UserError(
            f"The samples' indices in {folder} cannot be used: {damaged}, as a killed run or a full disk leaves it; "
            "delete that folder and start again, the same indices are made anew."
        ) from error


def _damage(path: Path) -> str | None:
    try:
        np.load(path, mmap_mode="r")
    except (ValueError, EOFError, OSError) as error:
        return f"{path.name} is damaged ({error})"
    return None
