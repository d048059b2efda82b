"""What the GPUs of a run send each other in one step, in bytes. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass

from megatron_patch.plan.memory import BYTES, RunShape, gathered_bytes, trained_of_stage

# Of one layer and micro-batch under sequence parallelism: gathers of the sequence forward, for the input's gradient and
# for the weights' gradients; and sums that are split over the ranks. Two products of a layer communicate in each pass.
_GATHERS, _SUMS = 6, 4


@dataclass(frozen=True)
class Traffic:
    """Bytes that each GPU sends in one step.

    Attributes:
        gradients: reduced over the replicas, in fp32.
        weights: gathered after the update, under DO.
        tensor: inside layers, between tensor-parallel ranks.
        pipeline: activations and their gradients, between stages.
    """

    gradients: int
    weights: int
    tensor: int
    pipeline: int


def traffic(run: RunShape) -> Traffic:
    """Of the fullest stage, the last one: rings send (n − 1) / n of what is gathered or reduced."""
    stage = run.pipeline_model_parallel_size - 1
    parameters = trained_of_stage(run, stage)
    replicas, tp, width = run.data_parallel_size, run.tensor_model_parallel_size, BYTES[run.precision]
    ring = (replicas - 1) / replicas
    rows = run.micro_batch_size * run.sample_length * run.micro_batches
    layers = run.model.num_layers // run.pipeline_model_parallel_size
    # Without SP a sum over ranks is a gather and a split sum in one, and the weights' gradients need no gather.
    passes = _GATHERS + _SUMS if run.sequence_parallel else 2 * _SUMS
    inside = int(layers * passes * rows * run.model.hidden_size * width * (tp - 1) / tp)
    between = 0
    if run.pipeline_model_parallel_size > 1:
        between = int(rows * run.model.hidden_size * width / (tp if run.sequence_parallel else 1))
    return Traffic(
        gradients=int(parameters * 4 * ring * (1 if run.use_distributed_optimizer else 2)),
        weights=int(gathered_bytes(run, stage) * ring) if run.use_distributed_optimizer else 0,
        tensor=inside,
        pipeline=between,
    )
