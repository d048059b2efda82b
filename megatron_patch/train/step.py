"""Forward and backward over a global batch, and the loss's bookkeeping.

The loss is per token, so it does not depend on how the batch is cut into micro-batches.
"""

from __future__ import annotations

import megatron_patch.core.device as device

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from megatron.core import parallel_state
from megatron.core.distributed import DistributedDataParallel
from megatron.core.pipeline_parallel import get_forward_backward_func
from megatron.core.utils import get_model_config

from megatron_patch.config import TrainConfig
from megatron_patch.core import tensor_exchange
from megatron_patch.core.fp8_weights import cast_weights
from megatron_patch.core.parallel import Layout
from megatron_patch.core.partial_gradients import finalize_gradients
from megatron_patch.core.transformer_config import DTYPES
from megatron_patch.data.batches import Batch, to_device
from megatron_patch.kernels import prefer
from megatron_patch.kernels.fp8 import note_largest_numbers
from megatron_patch.kernels.products import first_guess
from megatron_patch.plan.passes import pass_sizes
from megatron_patch.train import optimizer as optim
from megatron_patch.train.graphs import MicroBatchGraphs, why_no_graphs
from megatron_patch.train.kept_probabilities import bytes_of_layer, keep, recomputing
from megatron_patch.train.launch_watch import LaunchWatch, launch_watch
from megatron_patch.train.pipeline import PipelinePasses
from megatron_patch.train.product_choices import measure_together
from megatron_patch.train.stage_work import stage_work
from megatron_patch.train.state import StepResult, TrainState


def gradient_divisor(config: TrainConfig) -> float:
    """A constant near the number of tokens in a micro-batch, by which losses are divided before the backward pass.

    Without it fp16 gradients would be those of a sum over thousands of tokens, and could overflow. The division by the
    true number of tokens comes later, once, in Adam's pass. The constant is a power of two, so it changes no digit.
    """
    tokens = config.micro_batch_size * config.sample_length
    return float(1 << (tokens - 1).bit_length())


def forward_step(where: torch.device) -> Callable[[Iterator[Batch], Any], tuple[torch.Tensor, Callable]]:
    """core's `forward_step_func` for tensors on `where`.

    It takes an iterator of batches and the model, and runs one micro-batch through this stage. It returns the stage's
    output and a function that sums the losses. On the last stage the output is the loss of each token, [B, S].
    """

    def run(batches: Iterator[Batch], model: Any) -> tuple[torch.Tensor, Callable]:
        batch = to_device(next(batches), where)
        output = model(
            batch["tokens"],
            labels=batch["labels"],
            position_ids=batch.get("position_ids"),
            segment_ids=batch.get("segment_ids"),
            samples=batch.get("samples"),
        )

        def summed(losses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
            """losses [B, S] → their sum over unmasked tokens, int32 number of those; both as fp64 [2]."""
            mask = batch["loss_mask"]
            total, count = (losses * mask).sum(), mask.sum()
            return total, count.to(torch.int), torch.stack([total.detach().double(), count.double()])

        return output, summed

    return run


def prepare_model(state: TrainState) -> str:
    """Choose the kernels, and tell core's schedules how to scale the loss and what to do after the last gradient.

    Also decides whether the run's passes are CUDA graphs. Returns a phrase about what speaks against that; empty if
    nothing does.
    """
    prefer("torch" if state.config.options.kernels == "torch" else None)
    note_largest_numbers(state.config.precision == "fp8")
    config = get_model_config(state.model)
    divisor = gradient_divisor(state.config)
    config.grad_scale_func = lambda loss: loss * (state.loss_scale / divisor)
    config.no_sync_func = state.model.no_sync
    config.finalize_model_grads_func = lambda models, tokens, **kwargs: _finalize(state, models, tokens, **kwargs)
    obstacle = why_no_graphs(state.config)
    state.gathers = optim.weight_gathers(state.optimizer, state.model, records=not obstacle)
    state.reductions = optim.gradient_reductions(state.optimizer, state.model)
    state.watch = launch_watch(state.config, obstacle)
    if not obstacle:
        pipeline = state.config.pipeline_model_parallel_size > 1
        state.graphs = _pipeline_passes(state) if pipeline else _whole_model_passes(state)
    return obstacle


def _whole_model_passes(state: TrainState) -> MicroBatchGraphs:
    """The passes of a run without pipeline stages."""
    several = state.layout.world_size > 1
    work = lambda batch, closes: _forward_backward(state, batch, closes)  # noqa: E731
    return MicroBatchGraphs(work, reduces=several, tune=measure_together if several else None)


def _pipeline_passes(state: TrainState) -> PipelinePasses:
    """The passes of this rank's pipeline stage."""
    config, layout = state.config, state.layout
    length = config.sample_length // (config.tensor_model_parallel_size if config.sequence_parallel else 1)
    return PipelinePasses(
        stage_work(state.model, layout, forward_step(layout.device)),
        layout,
        shape=(length, config.micro_batch_size, config.model.hidden_size),
        dtype=DTYPES[config.weight_precision],
        micro_batches=_micro_batches(state),
        reduces=config.tensor_model_parallel_size * layout.data_parallel_size > 1,
        tune=measure_together,
    )


def _micro_batches(state: TrainState) -> int:
    """Number of micro-batches in a step, for each replica."""
    return state.config.global_batch_size // (state.config.micro_batch_size * state.layout.data_parallel_size)


def _forward_backward(state: TrainState, batch: Batch, closes: bool) -> torch.Tensor:
    """Run a batch forward and backward through the whole model, without core's schedule.

    The pass that `closes` a step also reduces each gradient over ranks as soon as it is complete. Returns fp64 [2]:
    this rank's summed losses and tokens.
    """
    run, scale = forward_step(state.layout.device), get_model_config(state.model).grad_scale_func
    tensor_exchange.begin_pass()
    with contextlib.nullcontext() if closes else state.model.no_sync():
        output, summed = run(iter([batch]), state.model)
        total, _, kept = summed(output)
        scale(total).backward()
    if closes:
        finalize_gradients([state.model], None)
    return kept


def _finalize(state: TrainState, models: list[Any], tokens: torch.Tensor, **kwargs: Any) -> None:
    """core's reductions of gradients at a step's end.

    core would also divide the gradients by the number of tokens, in a pass of its own. It is told of no tokens; Adam's
    pass divides.
    """
    finalize_gradients(models, None, **kwargs)
    state.tokens = _over_replicas(_of_last_stage(tokens.detach().clone().float()))


def _of_last_stage(numbers: torch.Tensor) -> torch.Tensor:
    """Overwrite `numbers` on every pipeline stage with those of the last one."""
    if parallel_state.get_pipeline_model_parallel_world_size() > 1:
        last = parallel_state.get_pipeline_model_parallel_last_rank()
        torch.distributed.broadcast(numbers, last, group=parallel_state.get_pipeline_model_parallel_group())
    return numbers


def _over_replicas(numbers: torch.Tensor) -> torch.Tensor:
    """Sum `numbers` over the data-parallel ranks, in place.

    Uses the group whose communicator core's gradients use, since another would take memory on the GPU.
    """
    torch.distributed.all_reduce(numbers, group=parallel_state.get_data_parallel_group(with_context_parallel=True))
    return numbers


def train_step(state: TrainState, batches: Iterator[Batch]) -> StepResult:
    """One global batch: forward, backward, update.

    The host waits for the device once, before the update. While the update runs, the caller does what is to do between
    two steps.
    """
    config = state.config
    if not state.model.training:  # `train()` visits every module while the device waits, so only after an evaluation
        state.model.train()
    if not state.steps_here:
        cast_weights(state.model.parameters())  # those that were loaded; a frozen one stays as it is
    optim.begin_step(state.optimizer, state.model, state.fused)
    state.loss_scale.copy_(optim.loss_scale(state.optimizer))
    if state.graphs is None:
        sums = run_schedule(state.model, config, state.layout, _watched(batches, state.watch), forward_only=False)
    else:
        sums = _run_passes(state, state.graphs, batches)
    state.steps_here += 1
    assert state.tokens is not None
    # What turns the accumulated gradients into those of the mean loss. All of it is on the device, so nothing waits.
    factor = gradient_divisor(config) / (state.loss_scale * state.tokens.clamp(min=1))
    measured = optim.measure_gradients(state.optimizer, factor, state.tokens)
    numbers = (sums[0], state.tokens, measured.norm, measured.found_inf, state.loss_scale)
    # The copy to the host is queued here, before the update, so that reading it does not wait for the update.
    read = device.read_later(torch.stack([number.double() for number in numbers]))
    if state.background is not None:
        state.background.before_update()
    optim.update_weights(state.optimizer, measured, factor, config.options.clip_grad)
    if state.gathers is not None:
        state.gathers.start()
    else:
        cast_weights(state.fused)
    total, count, norm, found_inf, scale_used = read()
    optim.settle(state.optimizer, bool(found_inf), int(count))
    return StepResult(total / max(count, 1), int(count), norm, bool(found_inf), scale_used)


def _watched(batches: Iterator[Batch], watch: LaunchWatch | None) -> Iterator[Batch]:
    """`batches`; with each a micro-batch begins."""
    for batch in batches:
        if watch is not None:
            watch.micro_batch()
        yield batch


def _run_passes(state: TrainState, graphs: MicroBatchGraphs | PipelinePasses, batches: Iterator[Batch]) -> torch.Tensor:
    """`run_schedule` in passes of our own. The first step launches its kernels; the second records them.

    Before a process's first step the first micro-batch is rehearsed: on pipeline stages to measure products, elsewhere
    to see how many micro-batches fit into a pass.
    """
    count = _micro_batches(state)
    if isinstance(graphs, PipelinePasses):
        if not graphs.launched:
            first = next(batches)
            graphs.rehearse(first)
            optim.begin_step(state.optimizer, state.model, state.fused)
            batches = itertools.chain([first], batches)
    elif not graphs.launched and (sizes := _pass_sizes(state.config, count)):
        batches = _rehearse(state, graphs, batches, sizes)
    sums = _over_replicas(graphs.run(batches, count))
    state.tokens = _of_last_stage(sums[1].float())
    return sums


def _pass_sizes(config: TrainConfig, count: int) -> tuple[int, ...]:
    """`pass_sizes` of this run's micro-batches, if it may join them."""
    return pass_sizes(count, config.micro_batch_size * config.sample_length) if config.options.pair_micro_batches else ()


def _rehearse(state: TrainState, graphs: MicroBatchGraphs, batches: Iterator[Batch], sizes: Sequence[int]) -> Iterator[Batch]:
    """Measure the memory that the first micro-batch takes, and run several in a pass if that much is left.

    Products run by torch's guess of an algorithm, because those of larger passes may be the ones to be measured.
    The gradients are dropped. Returns the batches, with the first one in front again.
    """
    optim.single(state.optimizer).optimizer.make_state()
    first = next(batches)
    with first_guess():
        training = device.bytes_taken(lambda: graphs.launch([first], closes=graphs.reduces))
        with torch.no_grad():
            evaluation = device.bytes_taken(lambda: forward_step(state.layout.device)(iter([first]), state.model))
    # NCCL takes memory when a collective first runs. So those that follow a step's passes run here too, before the
    # memory that is left is counted.
    sums = _over_replicas(torch.ones(2, dtype=torch.float64, device=state.layout.device))
    optim.measure_gradients(state.optimizer, sums[1].float(), sums[1])
    if state.gathers is not None:
        state.gathers.start()
    layers = recomputing(state.model, state.config)
    graphs.join_what_fits(sizes, training, evaluation, len(layers), bytes_of_layer(state.config))
    keep(layers[: graphs.keeping])
    optim.begin_step(state.optimizer, state.model, state.fused)
    return itertools.chain([first], batches)


def run_schedule(
    model: DistributedDataParallel, config: TrainConfig, layout: Layout, batches: Iterator[Batch], forward_only: bool
) -> torch.Tensor:
    """A global batch through core's pipeline schedule.

    Returns fp64 [2]: summed losses and unmasked tokens over all replicas; zeros on every stage but the last.
    """
    step = config.micro_batch_size * layout.data_parallel_size
    logged = get_forward_backward_func()(
        forward_step_func=forward_step(layout.device),
        data_iterator=batches,
        model=[model],
        num_microbatches=config.global_batch_size // step,
        seq_length=config.sample_length,
        micro_batch_size=config.micro_batch_size,
        forward_only=forward_only,
    )
    sums = torch.stack(logged).sum(0) if logged else torch.zeros(2, dtype=torch.float64, device=layout.device)
    return _over_replicas(sums)
