"""Fine-tuning data: TRAIN_DATASET_PATH for EPOCH passes, VALID_DATASET_PATH after each."""

from __future__ import annotations

from megatron_patch.config import TrainConfig
from megatron_patch.core.parallel import Layout
from megatron_patch.data import Say
from megatron_patch.data.batches import RunData, plan_of
from megatron_patch.data.json_dataset import run_dataset
from megatron_patch.data.run_tokenizer import text_tokenizer


def finetune_run_data(config: TrainConfig, layout: Layout, say: Say) -> RunData:
    """The training file for EPOCH shuffled passes. After each the run evaluates the whole validation file and saves.

    Raises:
        UserError: a file cannot be used, or training on it would teach nothing.
    """
    assert config.valid_data is not None
    say, path, valid_path = _said_once(say), config.train_data.text, config.valid_data.text
    tokenizer = text_tokenizer(config, say)
    train = run_dataset(config, tokenizer, path, say)
    train.report.require_something_to_learn()
    held_out = run_dataset(config, tokenizer, valid_path, say)
    valid = None if held_out.report.teaches_nothing else held_out
    if valid is None:
        say(f"  {valid_path}: {held_out.report.why_nothing} Evaluation is skipped.")
    plan = plan_of(config, layout.data_parallel_size, len(train), shuffled=True, passes=config.epochs)
    valid_plan = plan_of(config, layout.data_parallel_size, len(valid), shuffled=True, passes=1) if valid else None
    return RunData(
        train=train,
        valid=valid,
        plan=plan,
        valid_plan=valid_plan,
        train_iters=config.epochs * plan.batches_per_pass,
        eval_batches=valid_plan.batches_per_pass if valid_plan else 0,
        eval_every=plan.batches_per_pass,
        save_every=plan.batches_per_pass,
    )


def _said_once(say: Say) -> Say:
    """`say`, but for lines that it has said: both data sets may be one file."""
    said: set[str] = set()

    def say_new(line: str) -> None:
        if line not in said:
            said.add(line)
            say(line)

    return say_new
