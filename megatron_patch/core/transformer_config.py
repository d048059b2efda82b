"""From this project's configuration to megatron-core's `TransformerConfig`, optimizer and DDP configurations."""

from __future__ import annotations

import megatron_patch.core.device as device

import torch.nn.functional as F
from megatron.core.distributed import DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig
from megatron.core.transformer import TransformerConfig

from megatron_patch.config import TrainConfig
from megatron_patch.formats import dtypes

DTYPES = {one.precision: one.torch_dtype for one in dtypes.WEIGHTS}


def transformer_config(config: TrainConfig) -> TransformerConfig:
    """The LLaMA of `config` in core's terms. Nothing that needs Apex or Transformer Engine is switched on."""
    model, dtype = config.model, DTYPES[config.weight_precision]
    return TransformerConfig(
        num_layers=model.num_layers,
        hidden_size=model.hidden_size,
        ffn_hidden_size=model.ffn_hidden_size,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        kv_channels=model.kv_channels,
        layernorm_epsilon=model.norm_epsilon,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        init_method_std=config.options.init_method_std,
        # Also when a checkpoint is loaded. core marks weights as split over TP ranks only where it initializes them,
        # and an unmarked weight is left out of the gradient norm on every rank but the first.
        perform_initialization=True,
        use_cpu_initialization=not device.HAS_CUDA,
        params_dtype=dtype,
        fp16=config.precision == "fp16",
        bf16=config.weight_precision == "bf16",
        tensor_model_parallel_size=config.tensor_model_parallel_size,
        pipeline_model_parallel_size=config.pipeline_model_parallel_size,
        pipeline_dtype=dtype,
        sequence_parallel=config.sequence_parallel,
        # core then sums losses and gradients over a global batch, and train/step.py divides once, by all its unmasked
        # tokens. A mean of means would weigh a token by how many others its micro-batch has.
        calculate_per_token_loss=True,
        # Weight gradients go into the fp32 buffer inside the product: core/patches.py brings the kernel.
        gradient_accumulation_fusion=True,
        masked_softmax_fusion=False,
        persist_layer_norm=False,
        apply_rope_fusion=False,
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        deallocate_pipeline_outputs=True,
        batch_p2p_comm=device.HAS_CUDA,
        # This project records its graphs itself. core turns its own default into [] as well, and warns.
        cuda_graph_scope=[],
        **_recomputation(config),
    )


def _recomputation(config: TrainConfig) -> dict[str, object]:
    """core's settings for AC.

    `sel` recomputes attention where it is unfused; a fused kernel's backward recomputes anyway. `full` sets nothing
    here: the layers recompute themselves (model/llama.py), because core's function reads random states.
    """
    if config.recompute == "sel" and not config.use_flash_attn:
        return {"recompute_granularity": "selective", "recompute_modules": ["core_attn"]}
    return {}


def ddp_config(config: TrainConfig, data_parallel_size: int) -> DistributedDataParallelConfig:
    """Gradients are reduced in fp32. On GPUs that happens while the backward pass still runs.

    Weights are not gathered by core: `core.weight_gathers` does that.
    """
    overlap = device.HAS_CUDA and data_parallel_size > 1
    return DistributedDataParallelConfig(
        grad_reduce_in_fp32=True,
        overlap_grad_reduce=overlap,
        overlap_param_gather=False,
        use_distributed_optimizer=config.use_distributed_optimizer,
        check_for_nan_in_grad=False,  # train/optimizer.py looks at the norm, and Adam's kernel skips the step
    )


def optimizer_config(config: TrainConfig) -> OptimizerConfig:
    """Adam with the numbers of `config`: the original recipe's, where no flag says otherwise."""
    options = config.options
    return OptimizerConfig(
        optimizer="adam",
        lr=config.lr,
        min_lr=config.min_lr,
        # No weight_decay: the schedule sets each parameter group's when it is built (train/schedule.py).
        adam_beta1=options.adam_beta1,
        adam_beta2=options.adam_beta2,
        adam_eps=options.adam_eps,
        clip_grad=options.clip_grad,
        fp16=config.precision == "fp16",
        bf16=config.weight_precision == "bf16",
        params_dtype=DTYPES[config.weight_precision],
        initial_loss_scale=options.initial_loss_scale,
        loss_scale_window=options.loss_scale_window,
        use_distributed_optimizer=config.use_distributed_optimizer,
    )
