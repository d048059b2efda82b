"""One rank's part of the model, in core's DDP wrapper, on its device."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from megatron.core.distributed import DistributedDataParallel

from megatron_patch.config import TrainConfig
from megatron_patch.core.parallel import Layout
from megatron_patch.core.transformer_config import DTYPES, ddp_config, transformer_config
from megatron_patch.kernels.attention import choose_attention_backend
from megatron_patch.model.llama import LlamaModel


def choose_backend(config: TrainConfig, layout: Layout) -> tuple[str, str]:
    """(attention backend, why): FL false is unfused, true the fastest fused one that the machine has."""
    if not config.use_flash_attn:
        return "unfused", "FL is false"
    return choose_attention_backend(layout.device, DTYPES[config.precision], config.model.kv_channels, config.options.packing)


def build_model(config: TrainConfig, layout: Layout, backend: str) -> DistributedDataParallel:
    """This stage and tensor-parallel share of `config.model`, with its gradient buffer."""
    core = transformer_config(config)
    recompute_layers = config.recompute == "full"
    model = LlamaModel(core, config.model, config.vocab_size, backend, recompute_layers).to(layout.device)
    return DistributedDataParallel(core, ddp_config(config, layout.data_parallel_size), model)
