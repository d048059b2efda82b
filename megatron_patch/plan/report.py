"""The plan of a run as lines of text. Imports no torch."""

from __future__ import annotations

from dataclasses import fields, replace

from megatron_patch.language.sentences import columns, fill
from megatron_patch.plan.fitting import Gpu, fits, largest_micro_batch, what_would_fit, with_passes_that_fit
from megatron_patch.plan.memory import RunShape, StageMemory, memory_of_stages
from megatron_patch.plan.speed import StepTime, step_time, tokens_per_second
from megatron_patch.plan.traffic import traffic

_KINDS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer",
    "activations": "activations",
    "working": "gradients in work, logits",
    "communication": "NCCL's buffers",
    "context": "CUDA's context",
}


_TIMES = {"kernels": "other kernels", "tensor": "inside layers", "replicas": "gradients and weights sent"}


def plan_lines(run: RunShape, gpu: Gpu, gpus_per_node: int, nodes: int) -> list[str]:
    """Layout, memory of each kind and stage, whether it fits, how fast it is, traffic of a step."""
    run = with_passes_that_fit(run, gpu.memory)
    stages = memory_of_stages(run)
    fullest = max(stages, key=lambda stage: stage.total)
    lines = [
        f"LLaMA with {run.model.parameter_count(run.extra_vocab_size):,} parameters in {run.precision}: "
        f"TP {run.tensor_model_parallel_size}, PP {run.pipeline_model_parallel_size}, data parallel {run.data_parallel_size}, "
        f"{run.micro_batches} micro-batches of {run.micro_batch_size} × {run.sample_length} tokens for each replica"
        f"{f', {run.in_a_pass} in a pass' if run.in_a_pass > 1 else ''}.",
        "",
        *_table(stages),
        "",
        _verdict(run, gpu, fullest),
    ]
    if not fits(run, gpu.memory):
        offers = what_would_fit(run, gpu.memory)
        lines.append(f"What fits: {'; or '.join(offers)}." if offers else "No layout of these GPUs holds it; use more of them.")
    else:
        largest = largest_micro_batch(replace(run, in_a_pass=1, keeping=0), gpu.memory)
        lines.append(f"The largest BATCH_SIZE that fits is {largest}.")
        lines += speed_lines(run, gpu, gpus_per_node, nodes)
    sent = traffic(run)
    parts = [f"{one.name} {getattr(sent, one.name) / 1e9:.2f}" for one in fields(sent) if getattr(sent, one.name)]
    lines.append(f"Each GPU sends in one step, GB: {', '.join(parts)}." if parts else "Each GPU sends in one step, GB: nothing.")
    return lines


def speed_lines(run: RunShape, gpu: Gpu, gpus_per_node: int, nodes: int) -> list[str]:
    """Tokens a second and where a step's time goes; nothing for fp32, which is for CPUs and for debugging."""
    if run.precision == "fp32":
        return []
    if gpu.rates is None:
        return [f"The speed of an {gpu.name} is not known here; --gpu names the kinds that are."]
    step = step_time(run, gpu.rates, gpus_per_node, nodes)
    estimated = " from its data sheet; this kind was not measured" if gpu.rates.estimated else ""
    return [
        f"Expected: {tokens_per_second(run, step.total):,.0f} tokens/s per GPU, {step.total:.2f} s a step{estimated}.",
        f"Seconds of a step: {_where_time_goes(step)}.",
    ]


def _where_time_goes(step: StepTime) -> str:
    seconds = {one.name: getattr(step, one.name) for one in fields(step)}
    return ", ".join(f"{_TIMES.get(name, name)} {value:.3f}" for name, value in seconds.items() if value)


def _verdict(run: RunShape, gpu: Gpu, memory: StageMemory) -> str:
    share = memory.total / gpu.memory
    taken = f"{memory.total / 2**30:.1f} of the {gpu.memory / 2**30:.1f} GiB of an {gpu.name}, {share:.0%}"
    return f"{taken}: it fits." if fits(run, gpu.memory) else f"{taken}: it does not fit."


def _table(stages: list[StageMemory]) -> list[str]:
    names = [fill("stage {}", number) for number in range(len(stages))] if len(stages) > 1 else ["GiB"]
    rows = [["", *names]]
    rows += [[fill(said), *(f"{getattr(stage, kind) / 2**30:.1f}" for stage in stages)] for kind, said in _KINDS.items()]
    rows.append([fill("together"), *(f"{stage.total / 2**30:.1f}" for stage in stages)])
    rows.append([fill("of it torch's peak"), *(f"{stage.allocated / 2**30:.1f}" for stage in stages)])
    width = max(columns(row[0]) for row in rows)
    cells = [[row[0] + " " * (width - columns(row[0])), *(" " * (8 - columns(cell)) + cell for cell in row[1:])] for row in rows]
    return ["  ".join(row) for row in cells]
