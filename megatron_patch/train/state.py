"""What a run carries from one iteration to the next, and what one iteration gives."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import ChainedOptimizer

from megatron_patch.checkpoint.background import BackgroundSaves
from megatron_patch.config import TrainConfig
from megatron_patch.core import peer_memory, tensor_exchange
from megatron_patch.core.gradient_reductions import GradientReductions
from megatron_patch.core.parallel import Layout
from megatron_patch.core.weight_gathers import WeightGathers
from megatron_patch.folders.fingerprint import Origin
from megatron_patch.train.graphs import MicroBatchGraphs
from megatron_patch.train.launch_watch import LaunchWatch
from megatron_patch.train.pipeline import PipelinePasses


@dataclass
class TrainState:
    """What a run carries from one iteration to the next.

    Attributes:
        fused: weights whose gradients the matrix products write into the fp32 buffer themselves.
        loss_scale: of the current global batch; fp32, 0-dimensional, always at one place in memory, because recorded
            graphs read it there.
        origin: what the run was found to begin with, recorded at each save.
        iteration, consumed_samples: since the run's beginning, over all its processes.
        skipped_iterations: fp16 steps whose gradient overflowed.
        nan_iterations: steps in another precision whose gradient was not finite.
        best_loss, best_iteration, evaluations_since_best, evaluations_owed: of the validation loss, as in
            `RunProgress`.
        tokens: number of unmasked tokens of the current global batch; fp32, 0-dimensional, on the device.
        graphs: this project's own passes, which may be CUDA graphs; None runs core's schedule.
        gathers: the gathers of ZeRO's weights; None if no rank needs weights of another.
        reductions: the reductions of gradients by copy engines; None leaves them to NCCL.
        watch: looks whether the GPU waits for launches; None looks at nothing.
        steps_here: iterations that this process has done.
        has_saved: whether it has saved a checkpoint.
        step_seconds: that the last step took.
        background: the saves beside the training, which an update may have to wait for; None if there are none.
        last_checkpoint: the run's own that the same command goes on from; None as long as there is none.
    """

    config: TrainConfig
    layout: Layout
    model: DistributedDataParallel
    optimizer: ChainedOptimizer
    scheduler: Any
    fused: set[torch.nn.Parameter]
    loss_scale: torch.Tensor
    origin: Origin = Origin()
    iteration: int = 0
    consumed_samples: int = 0
    skipped_iterations: int = 0
    nan_iterations: int = 0
    best_loss: float | None = None
    best_iteration: int = 0
    evaluations_since_best: int = 0
    evaluations_owed: int = 0
    tokens: torch.Tensor | None = None
    graphs: MicroBatchGraphs | PipelinePasses | None = None
    gathers: WeightGathers | None = None
    reductions: GradientReductions | None = None
    watch: LaunchWatch | None = None
    steps_here: int = 0
    has_saved: bool = False
    step_seconds: float = 0.0
    background: BackgroundSaves | None = None
    last_checkpoint: Path | None = None

    def close(self) -> None:
        """Let go of graphs and of other ranks' memory. Call it before NCCL's communicators are taken down."""
        for part in (self.graphs, self.gathers, self.reductions):
            if part is not None:
                part.close()
        tensor_exchange.close()
        peer_memory.close()

    @property
    def joins_micro_batches(self) -> bool:
        """Whether several micro-batches go through the model at once."""
        return self.graphs is not None and self.graphs.together > 1


@dataclass(frozen=True)
class StepResult:
    """One iteration's numbers, which the host read from the device at once.

    Attributes:
        loss: mean over the global batch's unmasked tokens; 0 on every pipeline stage but the last.
        tokens: number of unmasked tokens of the global batch, on every stage. With 0 neither the weights nor Adam's
            state changed.
        grad_norm: L2 norm of the mean loss's gradient before clipping.
        found_inf: the gradient was not finite, so the weights did not change.
        loss_scale: with which the gradients were computed; 1 without fp16.
    """

    loss: float
    tokens: int
    grad_norm: float
    found_inf: bool
    loss_scale: float

    @property
    def mean_loss(self) -> float | None:
        """The loss; None if the step was skipped or its batch had no token to learn, which has no mean."""
        return None if self.found_inf or not self.tokens else self.loss
