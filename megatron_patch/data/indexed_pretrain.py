"""Pre-training data from `.bin`/`.idx` pairs, alone or as a weighted blend, through megatron-core's GPTDataset.

GPTDataset joins shuffled documents end to end and cuts samples of SEQ_LEN + 1 tokens out of them. It reads the `.bin`
itself.
"""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from megatron.core.datasets.blended_megatron_dataset_builder import BlendedMegatronDatasetBuilder
from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig

from megatron_patch.config import TrainConfig
from megatron_patch.core import parallel
from megatron_patch.core.array_files import load_array
from megatron_patch.core.messages import copy_to_other_nodes
from megatron_patch.core.parallel import Layout
from megatron_patch.core.patches import apply_patches
from megatron_patch.data import Say
from megatron_patch.data.batches import RunData, ValidationSet, plan_of
from megatron_patch.data.run_tokenizer import indexed_tokenizer
from megatron_patch.data.splits import repetitions, usable_split
from megatron_patch.data_paths import IndexedPairs
from megatron_patch.errors import Refused, UserError, refusal
from megatron_patch.formats.progress import Waiting
from megatron_patch.records.indexed import lengths_fingerprint


def indexed_run_data(config: TrainConfig, layout: Layout, say: Say) -> RunData:
    """Samples of the pairs for TRAIN_TOKENS, evaluated every `--eval-interval` iterations.

    Raises:
        UserError: the split leaves no training data; a pair, or core's file of sample indices, is damaged.
    """
    options, source = config.options, config.train_data
    assert isinstance(source, IndexedPairs)
    split = usable_split(options.split, source.prefixes, config.seq_length, _sample_counts(config))
    for line in repetitions(split, source.prefixes, config.seq_length):
        say(f"  {line}")
    train, valid = _gpt_datasets(config, source, split, indexed_tokenizer(config))
    train_samples, valid_samples, _ = _sample_counts(config)
    if valid is None and options.eval_interval and options.eval_iters:
        say(f"  the split {options.split} leaves no validation data; evaluation is skipped")
    validation: tuple[ValidationSet, ...] = ()
    if valid is not None and options.eval_interval:
        plan = plan_of(config, layout.data_parallel_size, valid_samples, shuffled=False)
        validation = (ValidationSet("", valid, plan, options.eval_iters),)
    return RunData(
        train=train,
        # core's data sets have as many samples as the run takes, in an order that is shuffled already.
        plan=plan_of(config, layout.data_parallel_size, train_samples, shuffled=False),
        validation=validation,
        train_iters=config.train_iters,
        eval_every=options.eval_interval,
        save_every=config.save_interval,
    )


def _evaluations(config: TrainConfig) -> int:
    """How many evaluations a run has at most: one every `--eval-interval` iterations, and one at the end."""
    return config.train_iters // config.options.eval_interval + 1 if config.options.eval_interval else 0


def _sample_counts(config: TrainConfig) -> list[int]:
    """How many samples the run takes for training, validation and test."""
    batches = (config.train_iters, _evaluations(config) * config.options.eval_iters, 0)
    return [count * config.global_batch_size for count in batches]


def _gpt_datasets(config: TrainConfig, source: IndexedPairs, split: str, tokenizer: Any) -> tuple[Any, Any | None]:
    """core's data sets for training and validation, with as many samples as the run takes. A sample is SEQ_LEN tokens.

    Validation is None if the split leaves nothing for it.

    Raises:
        UserError: as `indexed_run_data`.
    """
    weights = [weight for weight, _ in source.pairs]
    options = config.options
    folder = Path(config.output_path) / "data_cache" / f"samples-{_same_on_all_ranks(source.prefixes)}"
    gpt = GPTDatasetConfig(
        random_seed=options.seed,
        sequence_length=config.seq_length,
        blend=(source.prefixes, weights if len(weights) > 1 else None),
        split=split,
        path_to_cache=str(folder),
        tokenizer=tokenizer,
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
    )
    apply_patches()  # before any of core's files is read: a model's are applied later
    with _damage_named(folder), Waiting("laying out the samples") if parallel.rank() == 0 else nullcontext():
        if options.local_output:  # core lets one rank alone make the files that all read
            BlendedMegatronDatasetBuilder(GPTDataset, _sample_counts(config), lambda: parallel.rank() == 0, gpt).build()
            copy_to_other_nodes(folder)
        train, valid, _ = BlendedMegatronDatasetBuilder(GPTDataset, _sample_counts(config), lambda: True, gpt).build()
    if train is None:
        raise UserError(f"The split {split} leaves no training data in {source.text}.")
    return train, valid


def _same_on_all_ranks(prefixes: list[str]) -> str:
    """The name of the folder for core's index files: `lengths_fingerprint`, as the first rank computes it.

    core names its index files after the prefix and the run's numbers alone. A pair that was prepared anew would be read
    with the old pair's indices. So a folder's name identifies the lengths that its indices were made from. File times
    would not do: a copy of a pair has others, and nodes need not agree on them. Only the first rank makes indices, and
    the others map its files; so its name counts.
    """
    distributed = torch.distributed.is_initialized()
    name = [lengths_fingerprint(prefixes) if not distributed or torch.distributed.get_rank() == 0 else ""]
    if distributed:
        torch.distributed.broadcast_object_list(name, src=0)
    return name[0]


@contextmanager
def _damage_named(folder: Path) -> Iterator[None]:
    """Turn a failure into a UserError that names the damaged index file, if there is one. core's own errors name none.

    core writes index files in place. So a killed run leaves one that is cut short, and the next start reads it. A full
    disk does so too; its cut files are removed.
    """
    try:
        yield
    except Exception as error:
        refused = next((one for one in (error, error.__cause__) if isinstance(one, OSError)), None)
        cut = [path for path in sorted(folder.glob("*.npy")) if _damage(path)]
        if cut and refused is not None and _is_full(refused):
            for path in cut:
                path.unlink()
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))
            raise Refused(f"the samples' indices cannot be written: {refusal(full)}") from error
        damaged = next(filter(None, map(_damage, cut)), None)
        if damaged is None:
            raise
        raise UserError(
            f"The samples' indices in {folder} cannot be used: {damaged}, as a killed run or a full disk leaves it; "
            "delete that folder and start again, the same indices are made anew."
        ) from error


def _is_full(refused: OSError) -> bool:
    """Whether that was why. numpy's error has no number, and says how much it wrote."""
    return refused.errno in (errno.ENOSPC, errno.EDQUOT) or (refused.errno is None and " written" in str(refused))


def _damage(path: Path) -> str | None:
    """What is wrong with an index file, as a phrase; None if it can be read."""
    try:
        load_array(path)
    except (ValueError, EOFError, OSError) as error:
        return f"{path.name} is damaged ({error})"
    return None
