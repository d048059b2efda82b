"""The validation loss: its batches, the mean over them, and its lines."""

from __future__ import annotations

import megatron_patch.core.device as device

from collections.abc import Iterator

import torch

from megatron_patch.data.batches import Batch, MicroBatchSampler, RunData, micro_batches
from megatron_patch.kernels.products import first_guess
from megatron_patch.train.log import RunLog, perplexity, validation_lines
from megatron_patch.train.state import TrainState
from megatron_patch.train.step import run_schedule


def run_evaluation(state: TrainState, data: RunData, log: RunLog) -> float | None:
    """Evaluate, and log the loss to the console and TensorBoard; None if there is nothing to evaluate on.

    Of indexed data each evaluation takes the next `data.eval_batches` batches, as in the original. Of a validation
    file, or of a held-out part, every evaluation takes the first ones.
    """
    if data.valid is None or data.valid_plan is None or data.eval_batches == 0:
        return None
    first = 0
    if data.valid_plan.passes is None:  # go on where the evaluations before ended
        done = -(-state.iteration // data.eval_every) - 1
        first = done * data.eval_batches % data.valid_plan.batches_per_pass
    sampler = MicroBatchSampler(data.valid_plan, state.layout.data_parallel_rank, first, first + data.eval_batches)
    vocabulary = state.config.vocab_size
    batches = micro_batches(data.valid, sampler, vocab_size=vocabulary, num_workers=0, pin_memory=device.HAS_CUDA)
    loss = evaluate(state, batches, data.eval_batches)
    for line in validation_lines(state.iteration, loss):
        log.megatron(line)
    log.scalar("lm loss validation", loss, state.iteration, state.consumed_samples)
    log.scalar("lm loss validation ppl", perplexity(loss), state.iteration, state.consumed_samples)
    return loss


@torch.no_grad()
def evaluate(state: TrainState, batches: Iterator[Batch], count: int) -> float:
    """The mean loss of `count` global batches over their unmasked tokens; 0 on every pipeline stage but the last."""
    state.model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=state.layout.device)
    # Products are not measured here. Where training runs pairs, single micro-batches occur in evaluations only, and
    # measuring their products would cost more than it saves.
    with first_guess():
        for _ in range(count):
            sums += run_schedule(state.model, state.config, state.layout, batches, forward_only=True)
    state.model.train()
    total, tokens = sums.tolist()
    return total / max(tokens, 1)
