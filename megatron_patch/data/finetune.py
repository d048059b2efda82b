"""Fine-tuning data: TRAIN_DATASET_PATH for EPOCH passes, VALID_DATASET_PATH after each."""

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
    said_once,
)
from megatron_patch.data.run_data import RunData


def finetune_run_data(config: TrainConfig, layout: Layout, say: Say) -> RunData:
    """TRAIN_DATASET_PATH for EPOCH passes; the whole of VALID_DATASET_PATH and a checkpoint after each.

    Raises:
        UserError: a file that cannot be used, or of which nothing would be learnt.
    """
    assert config.valid_data_path is not None
    say = said_once(say)
    tokenizer = json_tokenizer(config, say)
    train = json_dataset(config, tokenizer, config.train_data_path, say)
    require_something_to_learn(train.report)
    held_out = json_dataset(config, tokenizer, config.valid_data_path, say)
    valid = None if held_out.report.teaches_nothing else held_out
    if valid is None:
        say(f"  {config.valid_data_path}: {nothing_to_learn(held_out.report)} Evaluation is skipped.")
    plan = dealt_out(config, layout, len(train), config.epochs)
    valid_plan = dealt_out(config, layout, len(valid), 1) if valid else None
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
