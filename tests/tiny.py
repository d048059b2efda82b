"""Configurations for tests that build a model in their own process. Imports no torch."""

from __future__ import annotations

from megatron_patch.config import TrainConfig
from megatron_patch.model_config import LLAMA_SIZES


def tiny_config(**changed: object) -> TrainConfig:
    """Four bf16 iterations of the tiny model with ZeRO in one process, 2 × 1 samples of 16 tokens; but for `changed`."""
    values = dict(
        task="pretrain", name="tiny", model=LLAMA_SIZES["tiny"], extra_vocab_size=0, load=None, output_path="",
        tensor_model_parallel_size=1, pipeline_model_parallel_size=1, sequence_parallel=False,
        use_distributed_optimizer=True, precision="bf16", recompute="none", use_flash_attn=True, micro_batch_size=1,
        global_batch_size=2, lr=1e-3, min_lr=1e-4, seq_length=16, pad_length=16, train_data_path="", valid_data_path=None,
        train_iters=4,
    )  # fmt: skip
    assert set(changed) <= set(values), set(changed) - set(values)
    return TrainConfig(**{**values, **changed})
