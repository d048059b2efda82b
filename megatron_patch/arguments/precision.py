"""PR of a training run, and what fp8 wants of GPUs, widths and lengths. No torch."""

from __future__ import annotations

from megatron_patch.arguments.gpus import find_driver, fp8_finding, visible_gpus
from megatron_patch.arguments.model import ModelReader
from megatron_patch.config import Options
from megatron_patch.formats.typed import whole_number
from megatron_patch.llama.divisibility import fp8_layers_finding, fp8_tokens_finding, fp8_width_finding
from megatron_patch.llama.model_config import LlamaConfig


class PrecisionReader(ModelReader):
    """`ModelReader` with PR."""

    def precision(self, options: Options, model: LlamaConfig, tp: int) -> str:
        """PR. FP8 needs GPUs that have it, widths that they take, and a layer between those that stay in bf16."""
        needs = fp8_finding(find_driver(), visible_gpus())
        chosen = self.choice("PR", ("fp16", "bf16", "fp32") if needs else None)
        if chosen != "fp8":
            return chosen
        if needs:
            self.problem("PR", needs)
        if not self.model_is_known or self.refused("TP"):
            return chosen
        if width := fp8_width_finding(model, tp):
            self.problem("PR", width)
        kept = fp8_layers_finding(model, options.fp8_layers)
        if kept and not self.findings.is_about_flag("--fp8-layers"):
            self.findings.add_flag("--fp8-layers", options.fp8_layers, kept)
        return chosen

    def fp8_tokens(self, name: str, length: int, split: int) -> None:
        """Whether FP8 products can sum over a micro-batch of rows of `length` tokens."""
        micro = whole_number(self.raw["BATCH_SIZE"]) or 1
        if self.raw["PR"] != "fp8" or self.refused("BATCH_SIZE", name):
            return
        if problem := fp8_tokens_finding(length, micro, split):
            self.problem(name, problem)
