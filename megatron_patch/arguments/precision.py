"""PR of a training run, and what fp8 wants of GPUs, widths and lengths. No torch."""

from __future__ import annotations

import math

from megatron_patch.arguments.gpus import find_driver, fp8_finding, visible_gpus
from megatron_patch.arguments.model import ModelReader
from megatron_patch.config import Options
from megatron_patch.formats.typed import whole_number
from megatron_patch.llama.model_config import LlamaConfig

_FP8_STEP = 16  # FP8 numbers that tensor cores take at a time


class PrecisionReader(ModelReader):
    """`ModelReader` with PR."""

    def precision(self, options: Options, model: LlamaConfig, tp: int) -> str:
        """PR. FP8 needs GPUs that have it, widths that they take, and a layer between those that stay in bf16."""
        layers, needs = model.num_layers, fp8_finding(find_driver(), visible_gpus())
        chosen = self.choice("PR", ("fp16", "bf16", "fp32") if needs else None)
        if chosen != "fp8":
            return chosen
        if needs:
            self.problem("PR", needs)
        if not self.model_is_known or self.refused("TP"):
            return chosen
        heads = (model.num_attention_heads * model.kv_channels, model.num_query_groups * model.kv_channels)
        for width in (model.hidden_size, model.ffn_hidden_size, *heads):
            if width % (_FP8_STEP * tp):
                self.problem(
                    "PR",
                    f"its products need widths that are multiples of {_FP8_STEP} on each GPU, and {width} ÷ TP {tp} is none: "
                    "write bf16.",
                )
                break
        if 2 * options.fp8_layers >= layers and not self.findings.is_about_flag("--fp8-layers"):
            wanted = f"it leaves none of the model's {layers} layers in FP8: write {(layers - 1) // 2} or less, or PR bf16."
            self.findings.add_flag("--fp8-layers", options.fp8_layers, wanted)
        return chosen

    def fp8_tokens(self, name: str, length: int, split: int) -> None:
        """FP8 products sum over a micro-batch's tokens on a GPU, `length` × BATCH_SIZE ÷ `split`, in steps of 16."""
        micro = whole_number(self.raw["BATCH_SIZE"]) or 1
        if self.raw["PR"] != "fp8" or self.refused("BATCH_SIZE", name) or length * micro % (_FP8_STEP * split) == 0:
            return
        step = _FP8_STEP * split // math.gcd(_FP8_STEP, micro)
        nearest = max(step, length - length % step)
        self.problem(name, f"with PR fp8 a micro-batch must have a multiple of {_FP8_STEP} tokens on each GPU: write {nearest}.")
