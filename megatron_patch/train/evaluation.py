"""The validation loss: its batches, the mean over them, and its lines."""

from __future__ import annotations

import megatron_patch.core.device as device

import time
from collections.abc import Callable, Iterator

import torch

from megatron_patch.core import parallel
from megatron_patch.data.batches import Batch, MicroBatchSampler, RunData, ValidationSet, micro_batches
from megatron_patch.kernels.products import first_guess
from megatron_patch.train.log import RunLog, perplexity, validation_lines
from megatron_patch.train.state import TrainState
from megatron_patch.train.step import run_schedule


def run_evaluation(state: TrainState, data: RunData, log: RunLog, is_cut_short: Callable[[], bool]) -> float | None:
    """Evaluate, and log the loss to the console and TensorBoard; None if it was cut short.

    Of several files each has its own loss, and the total is the mean over the learnt tokens of all. Every rank gets the
    same number.

    Args:
        is_cut_short: asked before each batch, by all ranks at once. If it says so, nothing is logged: a signal leaves
            less time than an evaluation may take.
    """
    started, sums = time.perf_counter(), []
    for part in data.validation:
        found = evaluate(state, _batches(state, data, part), part.batches, is_cut_short)
        if found is None:
            return None
        sums.append(found.cpu())
    for part, of_part in zip(data.validation, sums):
        if part.name:
            _log(state, log, _mean(of_part), part.name)
    total = torch.stack(sums).sum(0)
    _log(state, log, _mean(total))
    batches = sum(part.batches for part in data.validation)
    log.event("evaluation", iteration=state.iteration, seconds=time.perf_counter() - started, batches=batches)
    # The last rank is on the last stage, which alone has the loss. It also tells tensor-parallel ranks, bit for bit.
    return parallel.from_all_ranks(_mean(total))[-1]


def _batches(state: TrainState, data: RunData, part: ValidationSet) -> Iterator[Batch]:
    """This rank's batches of one evaluation.

    Of indexed data each evaluation takes the next ones, as in the original. Of a validation file, or of a held-out
    part, every evaluation takes the first ones.
    """
    first = 0
    if part.plan.passes is None:  # go on where the evaluations before ended
        done = -(-state.iteration // data.eval_every) - 1
        first = done * part.batches % part.plan.batches_per_pass
    sampler = MicroBatchSampler(part.plan, state.layout.data_parallel_rank, first, first + part.batches)
    vocabulary = state.config.vocab_size
    return micro_batches(part.data, sampler, vocab_size=vocabulary, num_workers=0, pin_memory=device.HAS_CUDA)


def _mean(sums: torch.Tensor) -> float:
    loss, tokens = sums.tolist()
    return loss / max(tokens, 1)


def _log(state: TrainState, log: RunLog, loss: float, name: str = "") -> None:
    """The lines and scalars of one file's loss, or of all together without a name."""
    for line in validation_lines(state.iteration, loss, name):
        log.iteration_line(line)
    behind = f"/{name}" if name else ""
    values = {f"lm loss validation{behind}": loss, f"lm loss validation ppl{behind}": perplexity(loss)}
    log.numbers(values, state.iteration, state.consumed_samples)


@torch.no_grad()
def evaluate(
    state: TrainState, batches: Iterator[Batch], count: int, is_cut_short: Callable[[], bool] = lambda: False
) -> torch.Tensor | None:
    """fp64 [2]: the summed loss of `count` global batches, and their unmasked tokens; None if it was cut short.

    Zeros on every pipeline stage but the last.
    """
    if state.gathers is not None:
        state.gathers.finish()  # products of an evaluation are bf16 ones
    state.model.eval()
    sums = torch.zeros(2, dtype=torch.float64, device=state.layout.device)
    # Products are not measured here. Where training runs pairs, single micro-batches occur in evaluations only, and
    # measuring their products would cost more than it saves.
    ended = False
    with first_guess():
        for _ in range(count):
            if ended := is_cut_short():
                break
            sums += run_schedule(state.model, state.config, state.layout, batches, forward_only=True)
    state.model.train()
    return None if ended else sums
