"""Build one rank's part of the model, in core's DDP wrapper, on its device."""

from __future__ import annotations

import megatron_patch.core.device  # noqa: F401  prepares megatron-core for this machine

from megatron.core.distributed import DistributedDataParallel

from megatron_patch.config import TrainConfig
from megatron_patch.core.fp8_weights import keep_fp8_copy
from megatron_patch.core.parallel import Layout
from megatron_patch.core.transformer_config import DTYPES, ddp_config, transformer_config
from megatron_patch.kernels.attention import choose_attention_backend
from megatron_patch.model.linear import ColumnLinear, RowLinear
from megatron_patch.model.llama import LlamaModel
from megatron_patch.model.lora import fill_adapters, number_dropout


def choose_backend(config: TrainConfig, layout: Layout) -> tuple[str, str]:
    """(attention backend, reason): unfused with FL false, the fastest fused one that the machine has with FL true."""
    if not config.use_flash_attn:
        return "unfused", "FL is false"
    return choose_attention_backend(
        layout.device, DTYPES[config.weight_precision], config.model.kv_channels, config.options.packing
    )


def build_model(config: TrainConfig, layout: Layout, backend: str) -> DistributedDataParallel:
    """This pipeline stage's and tensor-parallel rank's part of `config.model`, with its fp32 gradient buffer."""
    core = transformer_config(config)
    recompute_layers = config.recompute == "full"
    model = LlamaModel(core, config.model, config.vocab_size, backend, recompute_layers, config.lora).to(layout.device)
    fill_adapters(model, config.options.seed)
    number_dropout(model, config.options.seed)
    if config.precision == "fp8":
        _use_fp8(model, config)
    return DistributedDataParallel(core, ddp_config(config, layout.data_parallel_size), model)


def _use_fp8(model: LlamaModel, config: TrainConfig) -> None:
    """Let the linear layers of this stage's layers multiply in FP8, but for the whole model's first and last ones."""
    kept, layers = config.options.fp8_layers, config.model.num_layers
    for layer in model.decoder.layers:
        if kept < layer.layer_number <= layers - kept:  # core counts the whole model's layers from 1
            for part in layer.modules():
                if isinstance(part, (ColumnLinear, RowLinear)):
                    keep_fp8_copy(part.weight)
