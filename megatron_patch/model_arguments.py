"""The documented arguments that say which model a training run starts from: its size, its checkpoint, its tokenizer, its name.

Imports no torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from megatron_patch.arguments import Argument, Findings
from megatron_patch.checkpoint.layout import CheckpointLocation, read_model_description, resolve_checkpoint
from megatron_patch.checkpoint_paths import TRACKER, holds_tokenizer, run_root
from megatron_patch.config import Options
from megatron_patch.model_config import LLAMA_SIZES, TRAINING_SIZES, LlamaConfig, read_hf_config, shape_differences


@dataclass
class ModelReader:
    """One pass over the raw strings; each method reads one group of arguments and notes what is wrong in it."""

    task: str
    arguments: dict[str, Argument]
    raw: dict[str, str]
    findings: Findings
    notes: list[str]

    def whole(self, name: str, minimum: int = 1) -> int:
        return self.findings.whole(self.arguments[name], self.raw[name], minimum)

    def choice(self, name: str, allowed: Sequence[str]) -> str:
        return self.findings.choice(self.arguments[name], self.raw[name], allowed)

    def boolean(self, name: str) -> bool:
        return self.findings.boolean(self.arguments[name], self.raw[name])

    def problem(self, name: str, sentence: str) -> None:
        self.findings.add(self.arguments[name], self.raw[name], sentence)

    def source_and_model(self) -> tuple[CheckpointLocation | None, LlamaConfig]:
        """The checkpoint to start from, None without one, and the model as its config.json or MODEL_SIZE has it."""
        size = self.choice("MODEL_SIZE", (*TRAINING_SIZES, "auto"))
        named = LLAMA_SIZES.get(TRAINING_SIZES.get(size, ""), LLAMA_SIZES["tiny"])
        source = self.source()
        root = source.root if source else self.own_root()
        if root is None or (size != "auto" and not (root / "config.json").is_file()):
            if root is not None:
                self.notes.append(f"{root} has no config.json; MODEL_SIZE {size} says what its model is.")
            elif size == "auto" and self.raw["PRETRAIN_CHECKPOINT_PATH"] == "none":
                sizes = ", ".join(TRAINING_SIZES)
                self.problem("MODEL_SIZE", f"auto reads the checkpoint's config.json, and the checkpoint is none: write {sizes}.")
            return source, named
        try:
            model = read_hf_config(root)
        except ValueError as error:
            self.problem("PRETRAIN_CHECKPOINT_PATH", f"{error}")
            return source, named
        differences = shape_differences(named, model) if size != "auto" else []
        if differences:
            found = "; ".join(differences)
            self.problem("MODEL_SIZE", f"the checkpoint's config.json disagrees ({found}): write auto, or another checkpoint.")
        return source, model

    def source(self) -> CheckpointLocation | None:
        """PRETRAIN_CHECKPOINT_PATH's; None for `none`, and where it has gone, which does not stop a run with its own."""
        text = self.raw["PRETRAIN_CHECKPOINT_PATH"]
        if text == "none":
            return None
        try:
            return resolve_checkpoint(Path(text))
        except ValueError as error:
            if self.own_root() is None:
                self.problem("PRETRAIN_CHECKPOINT_PATH", f"{error} It takes the folder that model_convertor.sh made, or none.")
            else:
                self.notes.append(f"{error} Still, the run goes on from its own checkpoint.")
        return None

    def own_root(self) -> Path | None:
        """This run's own folder of checkpoints, where it has one to go on from."""
        root = run_root(self.raw["OUTPUT_BASEPATH"], self.name())
        # os.path answers where NAME, made of what was typed, is longer than a name may be; pathlib raises.
        return root if os.path.isfile(root / TRACKER) else None

    def extra_vocabulary(self, source: CheckpointLocation | None) -> int:
        extra = self.whole("EXTRA_VOCAB_SIZE", 0)
        try:
            described = read_model_description(source) if source else None
        except ValueError as error:
            self.problem("PRETRAIN_CHECKPOINT_PATH", f"{error}")
            described = None
        if described is not None and described.extra_vocab_size != extra:
            recorded = described.extra_vocab_size
            self.problem("EXTRA_VOCAB_SIZE", f"the checkpoint was converted with {recorded}: write {recorded}.")
        return extra

    def tokenizer(self, options: Options, source: CheckpointLocation | None) -> None:
        """JSON data is text: --tokenizer-path, or the checkpoint's folder or the run's own, must hold a tokenizer."""
        folders = [source.root if source else None, self.own_root()]
        refused = source is None and self.raw["PRETRAIN_CHECKPOINT_PATH"] != "none"  # which has been said
        if not options.tokenizer_path and not any(map(holds_tokenizer, folders)) and not refused:
            self.problem(
                "PRETRAIN_CHECKPOINT_PATH",
                "JSON data needs a tokenizer, and there is no tokenizer.model and no tokenizer.json beside the checkpoint: "
                "copy one there, or add --tokenizer-path FOLDER after the last argument.",
            )

    def name(self) -> str:
        """NAME of the run, spelt as in the original scripts."""
        r = self.raw
        if self.task == "pretrain":
            return (
                f"{r['ENV']}-pretrain-megatron-llama-{r['MODEL_SIZE']}-lr-{r['LR']}-bs-{r['BATCH_SIZE']}"
                f"-seqlen-{r['SEQ_LEN']}-pr-{r['PR']}-tp-{r['TP']}-pp-{r['PP']}-ac-{r['AC']}-do-{r['DO']}-sp-{r['SP']}"
                f"-tt-{r['TRAIN_TOKENS']}-wt-{r['WARMUP_TOKENS']}"
            )
        return (
            f"{r['ENV']}-finetune-megatron-llama-{r['MODEL_SIZE']}-lr-{r['LR']}-ep-{r['EPOCH']}-bs-{r['BATCH_SIZE']}"
            f"-seqlen-{r['SEQ_LEN']}-pr-{r['PR']}--do-{r['DO']}-tp-{r['TP']}-ac-{r['AC']}-sp-{r['SP']}"
        )
