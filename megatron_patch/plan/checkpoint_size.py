"""How many bytes a training checkpoint takes on the disk. Imports no torch."""

from __future__ import annotations

from megatron_patch.config import TrainConfig
from megatron_patch.formats.peft_adapter import LoraConfig
from megatron_patch.plan.lora import linear_parameters, trained_parameters

_WEIGHT = {"fp16": 2, "bf16": 2, "fp32": 4}  # bytes a parameter, in the model's own precision
_MOMENTS, _MAIN = 8, 4  # bytes a parameter: Adam's two in fp32, and the fp32 weight
MARGIN = 1 << 20  # bytes of descriptions beside the tensors


def checkpoint_bytes(config: TrainConfig) -> int:
    """The size of one checkpoint of the run, within a few MB; one of LoRA holds no frozen weights.

    fp32 without ZeRO is the one case in which the fp32 weights are the model's own, and are stored once.
    """
    count = config.model.parameter_count(config.extra_vocab_size)
    if config.lora is not None:
        return _with_adapter(config, config.lora, count)
    weights = count * _WEIGHT[config.weight_precision]
    if config.options.save_weights_only:
        return weights + MARGIN
    is_stored_once = config.precision == "fp32" and not config.use_distributed_optimizer
    return weights + count * (_MOMENTS + (0 if is_stored_once else _MAIN)) + MARGIN


def _with_adapter(config: TrainConfig, lora: LoraConfig, count: int) -> int:
    """Trained weights twice, for the run and for PEFT; frozen ones only if they were random."""
    trained, width = trained_parameters(config.model, lora, config.extra_vocab_size), _WEIGHT[config.weight_precision]
    packed = config.model.num_layers * linear_parameters(config.model, 1) if lora.quantizes else 0
    base = (count - packed) * width if config.load is None else 0
    state = 0 if config.options.save_weights_only else trained * (_MOMENTS + _MAIN)
    return base + 2 * trained * width + state + MARGIN
