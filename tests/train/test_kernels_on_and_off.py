"""Steps with this project's kernels and with their PyTorch references: the same learning.

On a GPU the kernels are compiled and the model is the tiny one; elsewhere Triton interprets them, which allows a
smaller model and fewer steps.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from tests.launching import ROOT

STEPS = 50 if torch.cuda.is_available() else 12
ROUNDED_STEPS = STEPS if torch.cuda.is_available() else 4  # in bf16


def curves(precision: str, steps: int, implementations: list[str]) -> dict[str, list[float]]:
    """Implementation → losses of its steps, from the same weights and tokens; tokens repeat, so that they are
    learnt."""
    import megatron_patch.core.device as device

    from megatron_patch.core import parallel
    from megatron_patch.llama.model_config import LLAMA_SIZES
    from tests.tiny import be_alone, tiny_config

    be_alone()
    # Large rates would make a difference of one rounding grow from step to step.
    size, length, rate = LLAMA_SIZES["tiny"], 64, 1e-3
    if not device.HAS_CUDA:
        small = dict(num_layers=1, hidden_size=32, ffn_hidden_size=88, num_attention_heads=2, num_query_groups=1, vocab_size=64)
        size, length, rate = replace(size, **small), 8, 1.2e-2
    config = tiny_config(
        model=size, precision=precision, use_flash_attn=False, global_batch_size=1, lr=rate, min_lr=rate / 10, seq_length=length,
        pad_length=length, train_iters=steps,
    )  # fmt: skip
    layout = parallel.start(config)
    found = {implementation: curve(config, layout, implementation) for implementation in implementations}
    parallel.stop()
    return found


def curve(config, layout, implementation: str) -> list[float]:
    import torch

    from megatron_patch.core.parallel import seed_everything
    from megatron_patch.kernels import prefer
    from megatron_patch.train.log import RunLog
    from megatron_patch.train.setup import build_state
    from megatron_patch.train.step import train_step

    seed_everything(config.options.seed)
    state = build_state(config, layout, RunLog(config, active=False), config.train_iters)
    prefer(implementation)
    generator = torch.Generator().manual_seed(0)
    samples = torch.randint(0, config.vocab_size, (2, 1, config.seq_length + 1), generator=generator).to(layout.device)
    mask = torch.ones(1, config.seq_length, device=layout.device)
    losses = []
    for step in range(config.train_iters):
        row = samples[step % 2]
        batch = {"tokens": row[:, :-1].contiguous(), "labels": row[:, 1:].contiguous(), "loss_mask": mask}
        losses.append(train_step(state, iter([batch])).loss)
        state.scheduler.step(increment=1)
    return losses


def in_a_process(precision: str, steps: int, *implementations: str) -> dict[str, list[float]]:
    command = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.train.test_kernels_on_and_off",
        precision,
        str(steps),
        *implementations,
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert result.returncode == 0, result.stderr[-3000:]
    return json.loads(result.stdout.splitlines()[-1])


def distance(curve: list[float], other: list[float]) -> float:
    """The largest relative difference of a step's loss."""
    return max(abs(a - b) / b for a, b in zip(curve, other, strict=True))


def test_kernels_do_not_change_learning():
    pytest.importorskip("triton")
    exact, rounded = (
        in_a_process(precision, steps, "triton", "torch") for precision, steps in (("fp32", STEPS), ("bf16", ROUNDED_STEPS))
    )
    assert len(exact["triton"]) == STEPS and exact["torch"][-1] < exact["torch"][0] - 1, "nothing was learnt"
    assert exact["triton"] == pytest.approx(exact["torch"], rel=1e-5)
    apart = distance(rounded["triton"], rounded["torch"])
    assert apart < 2e-2
    if torch.cuda.is_available():
        # bf16 alone changes the curve, and two curves in bf16 differ by at most twice that. Triton's interpreter
        # differs more, because it truncates float32 to bfloat16 where GPUs round.
        assert apart < 2 * distance(rounded["torch"], exact["torch"])


if __name__ == "__main__":
    print(json.dumps(curves(sys.argv[1], int(sys.argv[2]), sys.argv[3:])))
