"""`--kernels` decides what runs, also for a tensor on a GPU."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from megatron_patch.config import Options
from megatron_patch.kernels import prefer
from megatron_patch.kernels._dispatch import use_triton
from megatron_patch.train.log import RunLog
from megatron_patch.train.setup import build_state
from tests.tiny import tiny_config


@pytest.mark.parametrize("kernels, triton", [("torch", False), ("auto", True)])
def test_the_option_reaches_the_kernels(alone, kernels, triton):
    config = tiny_config(options=Options(kernels=kernels))
    try:
        build_state(config, alone, RunLog(config, active=False), 4)
        assert use_triton(None, SimpleNamespace(is_cuda=True)) is triton
    finally:
        prefer(None)
