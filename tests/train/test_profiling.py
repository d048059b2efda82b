"""--profile records the iterations that its flags name, and no other: read from the trace."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from megatron_patch.config import Options
from megatron_patch.train.profiling import profiler
from tests.tiny import tiny_config


@pytest.mark.parametrize("start, end", [(1, 2), (2, 4), (4, 6)])
def test_the_trace_has_the_iterations_that_were_asked_for(alone, tmp_path, start, end):
    options = Options(profile=True, profile_step_start=start, profile_step_end=end)
    with profiler(tiny_config(output_path=str(tmp_path), options=options), alone) as profile:
        for iteration in range(1, 8):
            with torch.profiler.record_function(f"iteration {iteration}"):
                torch.ones(2).sum()
            profile.step()
    (trace,) = Path(tmp_path, "tensorboard").glob("*_profile/*.pt.trace.json")
    names = {event.get("name", "") for event in json.loads(trace.read_text())["traceEvents"]}
    assert sorted(int(name[10:]) for name in names if re.fullmatch("iteration [0-9]", name)) == list(range(start, end))
