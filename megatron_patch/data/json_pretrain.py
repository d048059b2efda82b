"""A JSON file as DATASET_PATH of pre-training: the original's prompt, and a fixed part of the file to evaluate on.

The original evaluates on the file that it trains on. Here the part that `--split` gives to validation is held out, in the order
of the file, as with indexed data; it has at least one sample, so that small files are evaluated on too.
"""

from __future__ import annotations

from megatron_patch.config import TrainConfig
from megatron_patch.core.parallel import Layout
from megatron_patch.data.json_data import (
    Say,
    dealt_out,
    json_dataset,
    json_tokenizer,
    nothing_to_learn,
    require_something_to_learn,
)
from megatron_patch.data.run_data import RunData
from megatron_patch.data.sft import SFTDataset


def json_run_data(config: TrainConfig, layout: Layout, say: Say) -> RunData:
    """Shuffled passes over the file until TRAIN_TOKENS are reached; its held-out part every `--eval-interval` iterations.

    Raises:
        UserError: the file cannot be used, or nothing of it would be learnt.
    """
    whole = json_dataset(config, json_tokenizer(config, say), config.train_data_path, say)
    require_something_to_learn(whole.report)
    learnt, held_out = json_split(whole.report.samples, config.options.split)
    train = whole.part(learnt)
    require_something_to_learn(train.report)
    valid = _validation(config, whole.part(held_out), learnt, held_out, say)
    valid_plan = dealt_out(config, layout, len(valid), 1) if valid else None
    return RunData(
        train=train,
        valid=valid,
        plan=dealt_out(config, layout, len(train), None),
        valid_plan=valid_plan,
        train_iters=config.train_iters,
        eval_batches=min(config.options.eval_iters, valid_plan.batches_per_pass) if valid_plan else 0,
        eval_every=config.options.eval_interval,
        save_every=config.save_interval,
    )


def json_split(samples: int, split: str) -> tuple[range, range]:
    """The samples for training and those for validation, by the shares of `split`, rounded as core rounds documents.

    Where validation has a share, it gets a sample if there are two; training always gets one.
    """
    shares = [float(share) for share in split.split(",")] + [0.0, 0.0]
    train = max(1, round(shares[0] / sum(shares) * samples))
    end = max(train, round((shares[0] + shares[1]) / sum(shares) * samples))
    if shares[1] and end == train and samples > 1:
        train, end = (train - 1, train) if train > 1 else (train, train + 1)
    return range(train), range(train, end)


def _validation(config: TrainConfig, part: SFTDataset, learnt: range, held_out: range, say: Say) -> SFTDataset | None:
    """The held-out part, and a line about it; None where there is nothing to evaluate."""
    path, split, every = config.train_data_path, config.options.split, config.options.eval_interval
    if not held_out:
        if every:
            say(f"  the split {split} leaves no validation data; evaluation is skipped")
        return None
    numbers = f"{held_out.start + 1} to {held_out.stop}" if len(held_out) > 1 else f"{held_out.stop}"
    said = (
        f"  {path}: samples 1 to {learnt.stop} of {len(part.table)} are trained on, and {len(held_out)} are held out "
        f"(number {numbers}, in the order of the file; --split {split})"
    )
    if part.report.teaches_nothing:
        say(f"{said}; {nothing_to_learn(part.report)} Evaluation is skipped.")
        return None
    say(f"{said}: evaluated on every {every} iterations." if every else f"{said}; --eval-interval 0, no evaluation.")
    return part.teaching() if every else None  # an evaluation takes a few batches, and they must not be all without a token
