"""Whether a run fits into a GPU's memory, and if not, which arguments would make it fit. Imports no torch."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from megatron_patch.llama.divisibility import fp8_tokens_finding, fp8_width_finding, layout_findings, split_finding
from megatron_patch.plan.memory import RunShape, StageMemory, fullest_stage
from megatron_patch.plan.passes import choose_pass, pass_sizes
from megatron_patch.plan.rates import RATES, Rates

# Share of a GPU's memory that stays free: fragments of the allocator, and what libraries load later.
SPARE = 0.0125
_MOST_OFFERED = 3


@dataclass(frozen=True)
class Gpu:
    """A GPU as it is sold.

    Attributes:
        memory: bytes that CUDA offers, after ECC and the driver.
        rates: what it multiplies, copies and sends; None of a kind that GPUS does not list.
        has_fp8: whether its tensor cores multiply FP8 numbers, as far as is known.
    """

    name: str
    memory: int
    rates: Rates | None
    has_fp8: bool = True


# Bytes that CUDA reports as a device's memory. H200's and H100's were read on such machines, the others are NVIDIA's
# data sheets' gigabytes less the same share.
GPUS = {
    "h200": Gpu("NVIDIA H200", int(139.8 * 2**30), RATES["h200"]),
    "h100": Gpu("NVIDIA H100 80 GB", int(79.2 * 2**30), RATES["h100"]),
    "a100-80g": Gpu("NVIDIA A100 80 GB", int(79.2 * 2**30), RATES["a100-80g"], has_fp8=False),
    "h20": Gpu("NVIDIA H20 96 GB", int(95.1 * 2**30), RATES["h20"]),
    "l20": Gpu("NVIDIA L20 48 GB", int(44.5 * 2**30), RATES["l20"]),
    "rtx4090": Gpu("NVIDIA GeForce RTX 4090", int(23.5 * 2**30), RATES["rtx4090"]),
}

# What the driver's name of such a GPU holds; the first that is found counts.
_NAMES = {"H200": "h200", "H100": "h100", "A100": "a100-80g", "H20": "h20", "L20": "l20", "RTX 4090": "rtx4090"}


def of_this_machine(name: str, memory: int, has_fp8: bool) -> Gpu:
    """The GPU that the driver calls `name` and gives so many bytes."""
    kind = next((kind for text, kind in _NAMES.items() if re.search(rf"\b{text}\b", name)), None)
    return Gpu(name, memory, RATES[kind] if kind else None, has_fp8)


def fits(run: RunShape, memory: int) -> bool:
    """Whether the fullest stage of a run leaves SPARE of `memory` bytes."""
    return fullest_stage(run)[1].total <= (1 - SPARE) * memory


def with_passes_that_fit(run: RunShape, memory: int) -> RunShape:
    """The run as it will be: where PP is 1, as many micro-batches in a pass as fit; then what AC sel keeps."""
    sizes = pass_sizes(run.micro_batches, run.micro_batch_size * run.sample_length)
    if run.pipeline_model_parallel_size > 1 or not sizes:
        return run
    layers = run.model.num_layers if run.recompute == "sel" and not run.use_flash_attn else 0

    def fit(size: int, keeping: int, spares: int) -> bool:
        return fits(replace(run, in_a_pass=size, keeping=keeping), int(memory * (1 - (spares - 1) * SPARE)))

    size, keeping = choose_pass(sizes, layers, fit)
    return replace(run, in_a_pass=size, keeping=keeping)


def is_taken(run: RunShape) -> bool:
    """Whether the scripts take the run's layout and lengths; what a plan offers must be taken."""
    model, tp = run.model, run.tensor_model_parallel_size
    split = tp if run.sequence_parallel else 1
    rows = model.vocab_size + run.extra_vocab_size
    if layout_findings(model, tp, run.pipeline_model_parallel_size, rows) or split_finding(run.sample_length, split):
        return False
    return run.precision != "fp8" or not (
        fp8_width_finding(model, tp) or fp8_tokens_finding(run.sample_length, run.micro_batch_size, split)
    )


def largest_micro_batch(run: RunShape, memory: int) -> int:
    """The largest BATCH_SIZE with which the run fits, of those that divide a replica's samples; 0: none does."""
    samples = run.micro_batch_size * run.micro_batches
    low = [size for size in range(1, math.isqrt(samples) + 1) if samples % size == 0]
    sizes = {*low, *(samples // size for size in low)}
    runs = {size: _with_micro_batch(run, size) for size in sizes}
    return max((size for size, one in runs.items() if is_taken(one) and fits(one, memory)), default=0)


def _with_micro_batch(run: RunShape, size: int) -> RunShape:
    samples = run.micro_batch_size * run.micro_batches
    return replace(run, micro_batch_size=size, micro_batches=samples // size)


def what_would_fit(run: RunShape, memory: int) -> list[str]:
    """Arguments with which the same samples fit, as few changes as possible: phrases such as `DO true and AC full`."""
    found = [change for change in _changes(run) if fits(change.run, memory)]
    found.sort(key=lambda change: (len(change.said), change.cost))
    least = len(found[0].said) if found else 0
    return [" and ".join(change.said) for change in found if len(change.said) == least][:_MOST_OFFERED]


@dataclass(frozen=True)
class _Change:
    run: RunShape
    said: tuple[str, ...]
    cost: int  # about how much of its speed a run loses


def _changes(run: RunShape) -> Iterator[_Change]:
    """Every combination of arguments that takes less memory, on the same number of GPUs."""
    gpus = run.data_parallel_size * run.tensor_model_parallel_size * run.pipeline_model_parallel_size
    layouts = [(tp, pp) for tp in (1, 2, 4, 8) for pp in (1, 2, 4, 8, 16) if gpus % (tp * pp) == 0]
    own = (run.tensor_model_parallel_size, run.pipeline_model_parallel_size)
    sizes = sorted({1, run.micro_batch_size, max(1, run.micro_batch_size // 2)})
    choices = itertools.product(sizes, {True, run.use_distributed_optimizer}, {True, run.use_flash_attn},
                                {run.recompute, "full"}, [own, *(one for one in layouts if one != own)])  # fmt: skip
    for size, optimizer, flash, recompute, (tp, pp) in choices:
        changed = _laid_out(run, gpus, size, tp, pp)
        if changed is None:
            continue
        changed = replace(changed, use_distributed_optimizer=optimizer, use_flash_attn=flash, recompute=recompute)
        said, cost = _said(run, changed)
        if said:
            yield _Change(changed, said, cost)


def _laid_out(run: RunShape, gpus: int, size: int, tp: int, pp: int) -> RunShape | None:
    """The run in another layout, its global batch as it is; None where the scripts do not take that.

    With more than one GPU for a layer SP is true where SEQ_LEN allows it, since it takes less memory.
    """
    replicas = gpus // (tp * pp)
    samples = run.micro_batch_size * run.micro_batches * run.data_parallel_size
    if samples % (size * replicas):
        return None
    changed = replace(
        run,
        micro_batch_size=size,
        micro_batches=samples // (size * replicas),
        data_parallel_size=replicas,
        tensor_model_parallel_size=tp,
        pipeline_model_parallel_size=pp,
        in_a_pass=1,
        keeping=0,
    )
    ways = (replace(changed, sequence_parallel=split) for split in ((True, False) if tp > 1 else (False,)))
    return next(filter(is_taken, ways), None)


def _said(run: RunShape, changed: RunShape) -> tuple[tuple[str, ...], int]:
    """(what differs, as arguments; what it costs). Costs order the offers, they measure nothing."""
    tp, pp = changed.tensor_model_parallel_size, changed.pipeline_model_parallel_size
    same_tp, split = tp == run.tensor_model_parallel_size, f"SP {str(changed.sequence_parallel).lower()}"
    differences = (
        (changed.use_distributed_optimizer != run.use_distributed_optimizer, "DO true", 1),
        (changed.use_flash_attn != run.use_flash_attn, "FL true", 0),
        (changed.micro_batch_size != run.micro_batch_size, f"BATCH_SIZE {changed.micro_batch_size}", 2),
        (not same_tp, " with ".join((f"TP {tp}", split)[: min(tp, 2)]), 10 * tp),
        (same_tp and changed.sequence_parallel != run.sequence_parallel, split, 1),
        (pp != run.pipeline_model_parallel_size, f"PP {pp}", 12 * pp),
        (changed.recompute != run.recompute, "AC full", 25),
    )
    return tuple(text for differs, text, _ in differences if differs), sum(cost for differs, _, cost in differences if differs)


def memory_line(run: RunShape, memory: StageMemory) -> str:
    """One line for a run's start."""
    kinds = (("weights", "weights"), ("gradients", "gradients"), ("optimizer", "optimizer"), ("activations", "activations"))
    parts = [f"{name} {_gib(getattr(memory, field))}" for name, field in kinds]
    other = memory.working + memory.communication + memory.context
    passes = f" with {run.in_a_pass} micro-batches in a pass" if run.in_a_pass > 1 else ""
    return f"GPU memory, expected{passes}: {_gib(memory.total)} GiB ({', '.join(parts)}, other {_gib(other)})."


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f}"
