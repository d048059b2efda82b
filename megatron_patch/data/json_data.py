"""JSON data in a run: tokenized once by each node, judged, dealt out. Fine-tuning and pre-training on JSON share it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from megatron_patch.config import TrainConfig
from megatron_patch.core import parallel
from megatron_patch.core.parallel import Layout
from megatron_patch.data.run_tokenizer import run_tokenizer
from megatron_patch.data.samplers import BatchPlan
from megatron_patch.data.sft import SFTDataset, SFTReport, build_sft_dataset
from megatron_patch.data.tokenizer import Tokenizer
from megatron_patch.errors import UserError

Say = Callable[[str], None]


def said_once(say: Say) -> Say:
    """`say` without what it has said: two data sets may be one file, and have one tokenizer."""
    said: set[str] = set()

    def say_new(line: str) -> None:
        if line not in said:
            said.add(line)
            say(line)

    return say_new


def json_tokenizer(config: TrainConfig, say: Say) -> Tokenizer:
    """The tokenizer for a run's JSON data; a line says where the folder's files name different end tokens."""
    tokenizer = run_tokenizer(config, text=True)
    if tokenizer.end_note:
        say(f"  {tokenizer.end_note}")
    return tokenizer


def json_dataset(config: TrainConfig, tokenizer: Tokenizer, path: str, say: Say) -> SFTDataset:
    """The samples of a file, tokenized by each node's first rank, then read by all; what was cut, left out, not used is said.

    Raises:
        UserError: too much of the file cannot be used.
    """

    def build() -> SFTDataset:
        return build_sft_dataset(
            path,
            tokenizer,
            pad_len=config.pad_length,
            seq_len=config.seq_length,
            template=config.template,
            packing=config.options.packing,
            cache_dir=Path(config.output_path) / "data_cache",
            max_bad_fraction=config.options.max_bad_fraction,
        )

    dataset = build() if parallel.is_first_rank_of_node() else None
    parallel.barrier()
    dataset = dataset or build()
    for line in dataset.report.lines():
        say(f"  {path}: {line}")
    return dataset


def require_something_to_learn(report: SFTReport) -> None:
    """UserError where training on these samples would change nothing."""
    if report.teaches_nothing:
        raise UserError(f"{report.path}: {nothing_to_learn(report)}")


def nothing_to_learn(report: SFTReport) -> str:
    """Why none of the samples teaches anything, and what to do."""
    if report.cut:
        return (
            f"none of its {report.samples} samples has an answer within {report.length} tokens, so there is nothing to learn; "
            f"a PAD_LEN of {report.advised} (SEQ_LEN with --packing) keeps 95 % of them whole."
        )
    return f"its {report.samples} samples have no answer that is not empty or of weight 0, so there is nothing to learn."


def dealt_out(config: TrainConfig, layout: Layout, samples: int, passes: int | None) -> BatchPlan:
    """Shuffled passes over `samples`; None goes on for ever."""
    return BatchPlan(
        samples=samples,
        global_batch_size=config.global_batch_size,
        micro_batch_size=config.micro_batch_size,
        data_parallel_size=layout.data_parallel_size,
        shuffle_seed=config.options.seed,
        passes=passes,
    )
