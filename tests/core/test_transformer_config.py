"""AC: how often a step computes attention's probabilities, counted."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.launching import HIDDEN, ROOT
from tests.tiny import be_alone, tiny_config

LAYERS, MICRO_BATCHES = 4, 2  # of tests/tiny.py's model and global batch


def counts() -> dict[str, int]:
    """Calls in one training step, by AC and FL: of fused attention, or of the softmax of unfused attention."""
    import megatron_patch.core.device  # noqa: F401

    import torch

    from megatron_patch.core import parallel
    from megatron_patch.kernels import attention, unfused_attention
    from megatron_patch.train.log import RunLog
    from megatron_patch.train.setup import build_state
    from megatron_patch.train.step import train_step

    be_alone()
    computed, found, layout = [], {}, parallel.start(tiny_config())
    for module, name in ((attention, "_sdpa"), (unfused_attention, "causal_softmax_")):
        compute = getattr(module, name)
        counted = lambda *given, compute=compute, **options: (computed.append(1), compute(*given, **options))[1]  # noqa: E731
        setattr(module, name, counted)
    row = torch.ones(1, 16, dtype=torch.long, device=layout.device)
    batch = {"tokens": row, "labels": row, "loss_mask": torch.ones(1, 16, device=layout.device)}
    for recompute in ("none", "sel", "full"):
        for fused in (True, False):
            config = tiny_config(recompute=recompute, use_flash_attn=fused)
            state = build_state(config, layout, RunLog(config, active=False), 1)
            computed.clear()
            train_step(state, iter([batch] * MICRO_BATCHES))
            found[f"{recompute} {fused}"] = len(computed)
    parallel.stop()
    return found


def test_selective_recomputation_computes_nothing_that_fused_attention_recomputes_itself():
    command = [sys.executable, "-W", "ignore", "-m", "tests.core.test_transformer_config"]
    # On a GPU a rehearsal comes first, and micro-batches in pairs.
    result = subprocess.run(command, cwd=ROOT, env={**os.environ, **HIDDEN}, capture_output=True, text=True, timeout=200)
    assert result.returncode == 0, result.stderr[-3000:]
    once = LAYERS * MICRO_BATCHES
    assert json.loads(result.stdout.splitlines()[-1]) == {
        "none True": once, "none False": once, "sel True": once, "sel False": 2 * once,
        "full True": 2 * once, "full False": 2 * once,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(counts()))
