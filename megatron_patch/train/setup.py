"""From a configuration to a state that can be trained: patches, model, optimizer, schedule."""

from __future__ import annotations

import megatron_patch.core.device as device

import torch
from megatron.core import parallel_state

from megatron_patch.config import TrainConfig
from megatron_patch.core import peer_memory
from megatron_patch.core.parallel import Layout
from megatron_patch.core.patches import apply_patches
from megatron_patch.formats.peft_adapter import LoraConfig
from megatron_patch.model.build import build_model, choose_backend
from megatron_patch.plan.lora import adapter_parameters, trained_parameters
from megatron_patch.train.graphs import why_no_graphs
from megatron_patch.train.log import RunLog
from megatron_patch.train.optimizer import build_optimizer, fused_weights
from megatron_patch.train.product_choices import read_choices
from megatron_patch.train.schedule import lr_scheduler
from megatron_patch.train.state import TrainState
from megatron_patch.train.step import prepare_model


def build_state(config: TrainConfig, layout: Layout, log: RunLog, train_iters: int) -> TrainState:
    """Model, optimizer and schedule of this rank, before any checkpoint is loaded."""
    apply_patches()
    device.reset_peak_memory()
    if device.HAS_CUDA:
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    backend, why = choose_backend(config, layout)
    log.line(f"  attention: {backend} ({why})")
    _open_groups(config, log)
    model = build_model(config, layout, backend)
    optimizer = build_optimizer(config, model)
    state = TrainState(
        config=config,
        layout=layout,
        model=model,
        optimizer=optimizer,
        scheduler=lr_scheduler(config, optimizer, train_iters),
        fused=fused_weights(model),
        loss_scale=torch.ones((), device=layout.device),
    )
    remembered = read_choices(config)
    if remembered:
        log.line(f"  {remembered}")
    obstacle = prepare_model(state)
    log.line(f"  CUDA graphs: no ({obstacle})" if obstacle else "  CUDA graphs: yes")
    log.line(
        f"  LLaMA with {config.model.parameter_count(config.extra_vocab_size):,} parameters in {config.precision}; "
        f"TP {config.tensor_model_parallel_size}, PP {config.pipeline_model_parallel_size}, "
        f"data parallel {layout.data_parallel_size}, on {layout.device.type}"
    )
    if config.lora is not None:
        _say_what_is_trained(config, config.lora, log)
    return state


def _say_what_is_trained(config: TrainConfig, lora: LoraConfig, log: RunLog) -> None:
    """How many parameters LoRA trains, and how many it leaves as they are."""
    trained = trained_parameters(config.model, lora, config.extra_vocab_size)
    adapters = config.model.num_layers * adapter_parameters(config.model, lora)
    frozen = config.model.parameter_count(config.extra_vocab_size) - trained + adapters
    log.line(
        f"  LoRA: {trained:,} trainable parameters (rank {lora.rank}, alpha {lora.alpha:g}, dropout {lora.dropout:g}, on "
        f"{', '.join((*lora.targets, *lora.saved))}); {frozen:,} frozen ones"
    )
    if lora.quantizes:
        log.line("  frozen linear layers: in 4 bits, NF4 with double quantization")


def _open_groups(config: TrainConfig, log: RunLog) -> None:
    """Let ranks that communicate beside what they compute read each other's memory, where they can."""
    if not device.HAS_CUDA and not peer_memory.on_cpus:
        return
    groups = {}
    # An exchange is a dozen launches where NCCL's is one, which pays where they are recorded.
    if config.sequence_parallel and not (device.HAS_CUDA and why_no_graphs(config)):
        groups["TP"] = parallel_state.get_tensor_model_parallel_group()
    if config.use_distributed_optimizer:
        groups["data parallel"] = parallel_state.get_data_parallel_group(with_context_parallel=True)
    if config.options.peer_copies and (said := peer_memory.open_groups(groups)):
        log.line(f"  communication of {said}")
