"""How many bytes a training checkpoint takes on the disk. Imports no torch."""

from __future__ import annotations

from megatron_patch.config import TrainConfig

_WEIGHT = {"fp16": 2, "bf16": 2, "fp32": 4}  # bytes a parameter, in the model's own precision
_MOMENTS, _MAIN = 8, 4  # bytes a parameter: Adam's two in fp32, and the fp32 weight
MARGIN = 1 << 20  # bytes of descriptions beside the tensors


def checkpoint_bytes(config: TrainConfig) -> int:
    """The size of one checkpoint of the run, within a few MB.

    fp32 without ZeRO is the one case in which the fp32 weights are the model's own, and are stored once.
    """
    count = config.model.parameter_count(config.extra_vocab_size)
    weights = count * _WEIGHT[config.weight_precision]
    if config.options.save_weights_only:
        return weights + MARGIN
    is_stored_once = config.precision == "fp32" and not config.use_distributed_optimizer
    return weights + count * (_MOMENTS + (0 if is_stored_once else _MAIN)) + MARGIN
