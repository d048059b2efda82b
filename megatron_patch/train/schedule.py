"""The learning rate and weight decay over a run."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from typing import Any

from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_patch.config import TrainConfig


def lr_scheduler(config: TrainConfig, optimizer: Any, train_iters: int) -> OptimizerParamScheduler:
    """The schedule of a run: linear decay behind a warm-up, or for fine-tuning by epochs cosine decay.

    A step of it is an iteration. Fine-tuning by iterations is at MIN_LR as many iterations before its end as its
    warm-up has, as in the original.
    """
    early = config.warmup_iters if config.task == "finetune" else 0
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=config.lr,
        min_lr=config.min_lr,
        lr_warmup_steps=config.warmup_iters,
        lr_decay_steps=train_iters - early,
        lr_decay_style=config.decay_style,
        start_wd=config.options.weight_decay,
        end_wd=config.options.weight_decay,
        wd_incr_steps=train_iters,
        wd_incr_style="constant",
    )
