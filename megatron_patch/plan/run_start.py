"""A training run's configuration on paper, and what its start says of memory. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from megatron_patch.config import TrainConfig
from megatron_patch.errors import UserError
from megatron_patch.plan.fitting import fits, memory_line, what_would_fit, with_passes_that_fit
from megatron_patch.plan.memory import RunShape, fullest_stage


def run_shape(config: TrainConfig, processes: int) -> RunShape:
    """The run of `config` on so many GPUs."""
    replicas = processes // (config.tensor_model_parallel_size * config.pipeline_model_parallel_size)
    return RunShape(
        model=config.model,
        extra_vocab_size=config.extra_vocab_size,
        precision=config.precision,
        sample_length=config.sample_length,
        micro_batch_size=config.micro_batch_size,
        micro_batches=config.global_batch_size // (config.micro_batch_size * replicas),
        data_parallel_size=replicas,
        tensor_model_parallel_size=config.tensor_model_parallel_size,
        pipeline_model_parallel_size=config.pipeline_model_parallel_size,
        sequence_parallel=config.sequence_parallel,
        use_distributed_optimizer=config.use_distributed_optimizer,
        use_flash_attn=config.use_flash_attn,
        recompute=config.recompute,
        lora=config.lora,
        fp8_layers=config.options.fp8_layers,
    )


def expected_memory(run: RunShape, memory: int) -> str:
    """The line about memory that a run's start says.

    Args:
        memory: bytes of the GPU with the least; 0 where the run is on CPUs.

    Raises:
        UserError: what torch will allocate is more than the GPU has, so the run would end in its first step; the
            sentence names arguments with which it fits.
    """
    run = with_passes_that_fit(run, memory) if memory else run
    _, fullest = fullest_stage(run)
    if memory and fullest.allocated > memory:
        offers = what_would_fit(run, memory)
        instead = f"write {'; or '.join(offers)}" if offers else "use more GPUs"
        raise UserError(
            f"the run takes {fullest.allocated / 2**30:.1f} GiB of a GPU's memory, and there are {memory / 2**30:.1f}: {instead}."
        )
    line = memory_line(run, fullest)
    if not memory:
        return line
    tight = "" if fits(run, memory) else " That leaves little for fragments; a smaller BATCH_SIZE or AC full is safer."
    return f"{line.rstrip('.')}, of {memory / 2**30:.1f}.{tight}"


def dry_run_lines(config: TrainConfig, processes: int) -> Sequence[str]:
    """What a run would do: layout, steps, and everything that its arguments came to."""
    run = run_shape(config, processes)
    rows = config.global_batch_size * config.sample_length
    steps = f"{config.epochs} epochs" if config.epochs else f"{config.train_iters} iterations"
    return (
        f"{processes} processes: TP {run.tensor_model_parallel_size}, PP {run.pipeline_model_parallel_size}, data parallel "
        f"{run.data_parallel_size}.",
        f"{steps} of {config.global_batch_size} samples of {config.sample_length} tokens, {rows:,} tokens each; "
        f"{run.micro_batches} micro-batches of {config.micro_batch_size} for each replica.",
        f"NAME: {config.name}",
    )
