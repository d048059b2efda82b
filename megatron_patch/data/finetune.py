"""JSON data as a run's data: fine-tuning for EPOCH passes, or pre-training on it for TRAIN_TOKENS."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from megatron_patch.config import TrainConfig
from megatron_patch.core import parallel
from megatron_patch.core.parallel import Layout
from megatron_patch.data.run_data import RunData
from megatron_patch.data.run_tokenizer import run_tokenizer
from megatron_patch.data.samplers import BatchPlan
from megatron_patch.data.sft import SFTDataset, build_sft_dataset


def finetune_run_data(config: TrainConfig, layout: Layout, say: Callable[[str], None]) -> RunData:
    """TRAIN_DATASET_PATH for EPOCH passes; the whole of VALID_DATASET_PATH and a checkpoint after each."""
    assert config.valid_data_path is not None
    train = _dataset(config, config.train_data_path, say)
    valid = _dataset(config, config.valid_data_path, say)
    plan = _plan(config, layout, len(train), config.epochs)
    valid_plan = _plan(config, layout, len(valid), 1)
    return RunData(
        train=train,
        valid=valid,
        plan=plan,
        valid_plan=valid_plan,
        train_iters=config.epochs * plan.batches_per_pass,
        eval_batches=valid_plan.batches_per_pass,
        eval_every=plan.batches_per_pass,
        save_every=plan.batches_per_pass,
        fresh_validation=True,
    )


def json_run_data(config: TrainConfig, layout: Layout, say: Callable[[str], None]) -> RunData:
    """A JSON file as DATASET_PATH of pre-training: shuffled passes over it until TRAIN_TOKENS are reached."""
    train = _dataset(config, config.train_data_path, say)
    say("  JSON data has no validation split of its own; evaluation is skipped")
    return RunData(
        train=train,
        valid=None,
        plan=_plan(config, layout, len(train), None),
        valid_plan=None,
        train_iters=config.train_iters,
        eval_batches=0,
        eval_every=0,
        save_every=config.save_interval,
        fresh_validation=True,
    )


def _plan(config: TrainConfig, layout: Layout, samples: int, passes: int | None) -> BatchPlan:
    return BatchPlan(
        samples=samples,
        global_batch_size=config.global_batch_size,
        micro_batch_size=config.micro_batch_size,
        data_parallel_size=layout.data_parallel_size,
        shuffle_seed=config.options.seed,
        passes=passes,
    )


def _dataset(config: TrainConfig, path: str, say: Callable[[str], None]) -> SFTDataset:
    """Tokenized once by each node's first rank, then read by all; what was cut or teaches nothing is said."""
    tokenizer = run_tokenizer(config, text=True)

    def build() -> SFTDataset:
        return build_sft_dataset(
            path,
            tokenizer,
            pad_len=config.pad_length,
            seq_len=config.seq_length,
            template=config.options.template,
            packing=config.options.packing,
            cache_dir=Path(config.output_path) / "data_cache",
        )

    dataset = build() if parallel.is_first_rank_of_node() else None
    parallel.barrier()
    dataset = dataset or build()
    if len(dataset) == 0:
        raise ValueError(f"{path} holds no samples; a JSON list or JSON Lines of instruction, input and output is wanted.")
    for line in dataset.report.lines():
        say(f"  {path}: {line}")
    return dataset
