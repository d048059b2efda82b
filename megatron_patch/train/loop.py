"""A training run, from its configuration to its last checkpoint."""

from __future__ import annotations

import megatron_patch.core.device as device

import contextlib
import shlex
import time
from collections.abc import Callable, Iterator
from functools import partial

from megatron_patch.data.batches import Batch, MicroBatchSampler, RunData, micro_batches, numbered
from megatron_patch.errors import RunStopped
from megatron_patch.kernels.attention import expect_segments
from megatron_patch.processes import place
from megatron_patch.processes.notes import IterationNote
from megatron_patch.train.best import require_validation, why_over
from megatron_patch.train.health import Health
from megatron_patch.train.log import RunLog, training_line
from megatron_patch.train.owed_evaluation import evaluate_or_owe, make_up
from megatron_patch.train.product_choices import write_choices
from megatron_patch.train.profiling import profiler
from megatron_patch.train.record import data_facts
from megatron_patch.train.saves import Saves, is_due
from megatron_patch.train.state import StepResult, TrainState
from megatron_patch.train.step import train_step
from megatron_patch.train.stopping import StopRequest

# After this many iterations a process's memory does not grow any more.
_SETTLED = 3
_AS_ASKED = "as asked; the same command goes on from here."


def run(state: TrainState, data: RunData, log: RunLog) -> None:
    """Train from `state.iteration` to the end, with evaluations, checkpoints and log lines on the way.

    Raises:
        RunStopped: the run cannot go on, or its last checkpoint cannot be written. Every rank raises it.
    """
    require_validation(state, data)
    log.began(state.config, state.iteration, state.consumed_samples, data.train_iters, state.layout.world_size)
    if log.active:
        log.event("data", **data_facts(state.config, data))
    expect_segments(data.most_segments)
    stop, note = StopRequest(state.config), IterationNote()
    if not make_up(state, data, log, stop):
        _end_early(state, log, stop, _AS_ASKED)
        return
    if state.iteration >= data.train_iters:
        log.line(f"  nothing is left to do: {_its_length(state, data)}")
    elif over := why_over(state):
        log.line(f"  nothing is left to do: {over}; a larger number goes on")
        log.event("stop", iteration=state.iteration, reason=over)
        return
    batches = train_batches(state, data)
    window, health = _Window(), Health(state, data.plan, log)
    with _saves(state, health, log) as saves, profiler(state.config, state.layout) as profile:
        while state.iteration < data.train_iters:
            place.move("the step", state.iteration + 1)
            began = time.perf_counter()
            result = train_step(state, batches)
            known = time.perf_counter()
            lr = state.optimizer.param_groups[0]["lr"]
            _advance(state, data, result)
            note.done(state.iteration)
            window.add(result)
            log.step(state.iteration, result.mean_loss)
            if result.found_inf:
                why = "overflow" if state.config.precision == "fp16" else "not finite"
                log.event("skipped", iteration=state.iteration, why=why, loss_scale=result.loss_scale)
            if state.iteration % state.config.options.log_interval == 0 or state.iteration == data.train_iters:
                _log_training(state, data, log, window, window.seconds_per_iteration(known), result, lr)
                window = _Window(follows=known)
            health.step_done(result, lr)
            _tell_of_first_steps(state, log)
            if state.steps_here == _SETTLED:
                saves.prepare()
            paused, end = _evaluate_and_save(state, data, log, stop, partial(saves.step_done, result, lr, known - began))
            if paused:
                window.restart_clock()
            profile.step()
            if end:
                _end_early(state, log, stop, end)
                return
    log.event("stop", iteration=state.iteration, reason="finished")


def _end_early(state: TrainState, log: RunLog, stop: StopRequest, end: str) -> None:
    """Say that the run ends before its last iteration, and why."""
    log.line(f" stopping at iteration {state.iteration} {end}")
    log.event("stop", iteration=state.iteration, reason=why_over(state) or stop.reason)
    stop.tell_torchrun()


@contextlib.contextmanager
def _saves(state: TrainState, health: Health, log: RunLog) -> Iterator[Saves]:
    """The run's saves. One that is under way at the run's end is waited for, also where all ranks end by one error."""
    saves = Saves(state, health, log)
    try:
        yield saves
    except RunStopped:
        saves.finish(ends=False)
        raise
    saves.close()


def _tell_of_first_steps(state: TrainState, log: RunLog) -> None:
    """What is known after the first steps of this process: graphs, products, memory, and whether Python is too slow."""
    if state.watch is not None and (idle := state.watch.step_done()):
        log.line(idle)
    if state.steps_here == 1 and state.graphs is not None and state.graphs.decision:
        log.line(f"  {state.graphs.decision}")
        if state.graphs.keeping:
            kept, of = state.graphs.keeping, state.config.model.num_layers
            note = f"AC sel: {kept} of {of} layers keep attention's probabilities, for which memory is left"
            log.line(f"  {note}")
    if state.steps_here == 1 and (refused := write_choices(state.config)):
        log.warn(refused)
    if state.steps_here == _SETTLED:
        _log_memory(state, log)


def _its_length(state: TrainState, data: RunData) -> str:
    """How long a run is that has ended, and how it gets longer."""
    config = state.config
    argument = "EPOCH" if config.epochs else "TRAIN_ITERS" if config.task == "finetune" else "TRAIN_TOKENS"
    resumed = shlex.quote(config.checkpoint_folder)
    return f"the run has its {data.train_iters} iterations; for more, raise {argument} and add --resume-from {resumed}"


def _evaluate_and_save(
    state: TrainState, data: RunData, log: RunLog, stop: StopRequest, save: Callable[..., bool | None]
) -> tuple[bool, str]:
    """What is due after an iteration. Returns whether it took time, and why the run ends before its last iteration.

    save: `Saves.step_done` for this iteration.
    """
    options, evaluated, is_best = state.config.options, False, False
    if data.validation and is_due(state.iteration, data.eval_every, data.train_iters):
        evaluated, is_best = True, evaluate_or_owe(state, data, log, stop)
    place.move("agreeing whether to stop")
    stopping = stop.requested()
    over = why_over(state) if state.iteration < data.train_iters else None
    ends = stopping or over is not None or state.iteration == data.train_iters
    due = ends or is_due(state.iteration, data.save_every, data.train_iters)
    # With its last iteration done a run was not stopped early, unless it owes something.
    is_early = state.iteration < data.train_iters or bool(state.evaluations_owed)
    if stopping and is_early:
        stop.tell_torchrun()  # before the save, which may fail: a restart would go on against the signal
    saved = save(due=due, ends=ends, is_best=is_best and options.save_best)
    # A save is long. A signal amid it asks for no second one.
    stopping = is_early and (stopping or (due and bool(saved) and stop.signalled_anywhere()))
    end = f"early: {over}." if over else "as asked." if stopping and options.save_weights_only else ""
    end = end or (_AS_ASKED if stopping else "")
    goes_on = state.background is not None and state.background.is_saving
    return evaluated or (saved is not None and not goes_on), end


def _advance(state: TrainState, data: RunData, result: StepResult) -> None:
    """Count an iteration that is done, and step the schedule."""
    plan = data.plan
    number = state.iteration % plan.batches_per_pass
    in_batch = min(plan.global_batch_size, plan.samples - number * plan.global_batch_size)
    state.iteration += 1
    state.consumed_samples += in_batch
    if not result.found_inf:
        # Also after a batch without a token to learn: the schedule counts iterations, and must end at MIN_LR.
        state.scheduler.step(increment=1)
    elif state.config.precision == "fp16":
        state.skipped_iterations += 1
    else:
        state.nan_iterations += 1


class _Window:
    """What happened since the last log line. Its clock stops for evaluations and saves.

    Args:
        follows: when the host got the last loss of the window before; None after a pause, and for the first window.
    """

    def __init__(self, follows: float | None = None) -> None:
        self.started = time.perf_counter() if follows is None else follows
        self.began_at_rest = follows is None
        self.losses: list[float] = []
        self.iterations = 0  # since the clock was started
        self.skipped = 0

    def restart_clock(self) -> None:
        """Start the clock anew, after an evaluation or a save: their time belongs to no iteration."""
        self.started, self.began_at_rest, self.iterations = time.perf_counter(), True, 0

    def add(self, result: StepResult) -> None:
        """Count an iteration."""
        self.iterations += 1
        self.skipped += int(result.found_inf)
        if result.mean_loss is not None:
            self.losses.append(result.mean_loss)

    def seconds_per_iteration(self, known: float) -> float:
        """Mean seconds of an iteration.

        Args:
            known: when the host got the last loss. The device was still running that iteration's update then. A window
                that follows another begins with such an update and ends before one, so the two cancel. After a pause a
                window begins with an idle device; then the device is synchronized first, so that the last update counts
                too.
        """
        if self.began_at_rest:
            device.synchronize()
            known = time.perf_counter()
        return (known - self.started) / self.iterations

    @property
    def loss(self) -> float | None:
        """Mean of the iterations' losses; None if every iteration was skipped."""
        return sum(self.losses) / len(self.losses) if self.losses else None


def _log_training(
    state: TrainState, data: RunData, log: RunLog, window: _Window, seconds: float, result: StepResult, lr: float
) -> None:
    """Write Megatron's line and TensorBoard's scalars for the window that ends now."""
    config, layout = state.config, state.layout
    tokens = config.global_batch_size * config.sample_length / seconds / layout.world_size
    frozen = config.lora is not None
    tflops = tokens * config.model.flops_per_token(config.sample_length, config.extra_vocab_size, frozen) / 1e12
    fp16 = config.precision == "fp16"
    log.iteration_line(
        training_line(
            iteration=state.iteration,
            train_iters=data.train_iters,
            consumed_samples=state.consumed_samples,
            seconds=seconds,
            tflops=tflops,
            tokens_per_second=tokens,
            lr=lr,
            global_batch_size=config.global_batch_size,
            loss=window.loss,
            result=result,
            skipped=window.skipped if fp16 else 0,
            nan=0 if fp16 else window.skipped,
        )
    )
    values = {
        **({"lm loss": window.loss} if window.loss is not None else {}),
        "learning-rate": lr,
        "batch-size": float(config.global_batch_size),
        "loss-scale": result.loss_scale,
        "grad-norm": result.grad_norm,
        "iteration-time": seconds,
        "throughput": tflops,
        "tokens-per-second": tokens * layout.world_size,
        "tokens-per-second-per-gpu": tokens,
        "mem-max-allocated-bytes": float(device.max_memory_allocated()),
    }
    log.numbers(values, state.iteration, state.consumed_samples)


def _log_memory(state: TrainState, log: RunLog) -> None:
    """Write Megatron-LM's line about memory, once. By now all that a step needs is allocated, CUDA graphs too."""
    memory = device.memory_report()
    if memory is not None:
        log.line(f"[Rank {state.layout.rank}] (after {state.iteration} iterations) memory (MB) | {memory}")


def train_batches(state: TrainState, data: RunData) -> Iterator[Batch]:
    """This rank's micro-batches from the state's iteration on, in host memory."""
    sampler = MicroBatchSampler(data.plan, state.layout.data_parallel_rank, state.iteration, data.train_iters)
    config = state.config
    batches = micro_batches(
        data.train,
        sampler,
        vocab_size=config.vocab_size,
        num_workers=config.options.num_workers,
        pin_memory=device.HAS_CUDA,
    )
    if config.lora is None or not config.lora.dropout:
        return batches
    return numbered(batches, data.plan, state.layout.data_parallel_rank, state.iteration)
