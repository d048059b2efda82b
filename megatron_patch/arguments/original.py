"""Commands in the forms that the original project's scripts take today, put into the documented order. Imports no
torch.

The documented lists are those of September 2023. In October of that year the original dropped MEGATRON_PATH and added
TE; its later scripts take more arguments. In such a command every word is in another place than here, and nearly every
one would be a finding.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from megatron_patch.arguments.argument import TRUE_FALSE, Argument, Script
from megatron_patch.arguments.commands import command
from megatron_patch.arguments.conversion_list import CONVERT
from megatron_patch.arguments.preparation_list import PREPARE
from megatron_patch.arguments.training_list import FINETUNE, FINETUNE_WITH_GA, PRETRAIN
from megatron_patch.folders.checkout import ROOT
from megatron_patch.formats.typed import number, whole_number
from megatron_patch.language.sentences import fill
from megatron_patch.llama.model_config import TRAINING_SIZES

_SIZES = "SEQ_LEN PAD_LEN EXTRA_VOCAB_SIZE PR TP PP AC DO FL SP"
_TAIL = "SAVE_INTERVAL DATASET_PATH PRETRAIN_CHECKPOINT_PATH TRAIN_TOKENS WARMUP_TOKENS OUTPUT_BASEPATH"
_TUNED = "TRAIN_DATASET_PATH VALID_DATASET_PATH PRETRAIN_CHECKPOINT_PATH EPOCH OUTPUT_BASEPATH"
_STEPS = "SAVE_INTERVAL DATASET_PATH VALID_DATASET_PATH PRETRAIN_CHECKPOINT_PATH TRAIN_ITERS WARMUP_ITERS OUTPUT_BASEPATH"
_BATCHES = "ENV MEGATRON_PATCH_PATH MODEL_SIZE BATCH_SIZE GLOBAL_BATCH_SIZE LR MIN_LR"
_BATCH = "ENV MEGATRON_PATCH_PATH MODEL_SIZE BATCH_SIZE LR MIN_LR"
_WITH_ENGINE = "ENV MEGATRON_PATH MEGATRON_PATCH_PATH MODEL_SIZE BATCH_SIZE"
_70B = (
    "ENV MODEL_SIZE BATCH_SIZE GLOBAL_BATCH_SIZE LR MIN_LR SEQ_LEN PAD_LEN PR TP PP CP SP DO FL SFT AC OPTIMIZER_OFFLOAD "
    "SAVE_INTERVAL DATASET_PATH VALID_DATASET_PATH PRETRAIN_CHECKPOINT_PATH TRAIN_TOKENS WARMUP_TOKENS OUTPUT_BASEPATH"
)
_MCORE_CONVERT = (
    "MODEL_SIZE HG_CKPT_PATH MEGATRON_PATH SOURCE_CKPT_PATH TARGET_CKPT_PATH TP PP EXTRA_VOCAB_SIZE NUM_EXPERTS EXPERTS_TOPK EP "
    "NUM_EXPERT_SPLITS mg2hf"
)
# A script here → (the original's script, its arguments in their order).
_FORMS: dict[str, tuple[tuple[str, str], ...]] = {
    PRETRAIN.name: (
        ("run_pretrain_megatron_llama.sh", f"{_BATCHES} {_SIZES} TE {_TAIL}"),
        ("run_pretrain_megatron_llama.sh", f"{_WITH_ENGINE} GLOBAL_BATCH_SIZE LR MIN_LR {_SIZES} TE {_TAIL}"),
        ("run_pretrain_mcore_llama.sh", f"{_BATCHES} {_SIZES} TE MOE {_TAIL}"),
        ("run_mcore_llama2_70b.sh", _70B),
    ),
    FINETUNE.name: (
        ("run_finetune_megatron_llama.sh", f"{_BATCH} {_SIZES} TE {_TUNED}"),
        ("run_finetune_megatron_llama.sh", f"{_WITH_ENGINE} LR MIN_LR {_SIZES} TE {_TUNED}"),
        (FINETUNE_WITH_GA.name, f"{_BATCHES} {_SIZES} TE {_STEPS}"),
        ("run_finetune_mcore_llama_withGA.sh", f"{_BATCHES} {_SIZES} TE MOE {_STEPS}"),
    ),
    FINETUNE_WITH_GA.name: (("run_finetune_mcore_llama_withGA.sh", f"{_BATCHES} {_SIZES} TE MOE {_STEPS}"),),
    CONVERT.name: (("hf2mcore_convertor.sh", _MCORE_CONVERT),),
    PREPARE.name: (("run_make_pretraining_dataset.sh", "MEGATRON_PATCH_PATH input_data_dir tokenizer output_data_dir load_dir"),),
}
_SWITCHES = ("TE", "MOE", "SFT", "OPTIMIZER_OFFLOAD")
_NUMBERS = ("CP", "TRAIN_ITERS", "WARMUP_ITERS", "NUM_EXPERTS", "EXPERTS_TOPK", "EP", "NUM_EXPERT_SPLITS")
_PER_ODD_WORD = 8  # one word of so many may be wrong in its own right


@dataclass(frozen=True)
class Original:
    """A command that was typed for a script of the original."""

    script: Script  # here, whose command is to be written
    name: str  # of the original's script
    values: Mapping[str, str]
    flags: Sequence[str]

    @property
    def sentence(self) -> str:
        """A sentence that says what the command is and what differs, and a line with the command to write instead."""
        ours = [one.name for one in self.script.documented]
        if ours == list(self.values):
            template = "these are the {} arguments of {}, which is here too. Write:"
            return f"{fill(template, len(ours), self.script.name)}\n  {self.command}"
        less, more = [[name for name in a if name not in b] for a, b in ((ours, self.values), (list(self.values), ours))]
        template = "these are the {} arguments of the original's present {}, not the {} documented ones ({}). Write:"
        changes = [("without {}", less), ("with {}", more)]
        told = "; ".join(fill(how, ", ".join(names)) for how, names in changes if names)
        return f"{fill(template, len(self.values), self.name, len(ours), told)}\n  {self.command}"

    @property
    def command(self) -> str:
        """The command in the documented order. An argument that the original did not take stands there as its name."""
        known = {"MEGATRON_PATH": "none", "EXTRA_VOCAB_SIZE": "0", "EPOCH": "EPOCH"}
        if self.script is CONVERT:
            known["MN"] = TRAINING_SIZES.get(self.values["MODEL_SIZE"], "auto")
        return command(self.script, {**known, **self.values, "MEGATRON_PATCH_PATH": ROOT}, self.flags)


def original_command(script: Script, words: Sequence[str]) -> Original | None:
    """The command of the original that `words`, typed behind `script`, are; None if they are not one."""
    end = next((place for place, word in enumerate(words) if word.startswith("--")), len(words))
    documented = [one.name for one in script.documented]
    odd = _odd_words(script, documented, words[:end]) if end == len(documented) else len(words)
    for name, arguments in _FORMS.get(script.name, ()):
        names = arguments.split()
        if len(names) == end and _odd_words(script, names, words[:end]) <= min(end // _PER_ODD_WORD, odd - 3):
            ours = FINETUNE_WITH_GA if script is FINETUNE and "withGA" in name else script
            return Original(ours, name, dict(zip(names, words[:end])), words[end:])
    return None


def refuse_original(script: Script, words: Sequence[str]) -> None:
    """End with status 2, and print the command in the documented order, if `words` are a command of the original.

    Raises:
        SystemExit: they are one.
    """
    original = original_command(script, words)
    if original is not None:
        print(f"{script.name}: {original.sentence}", file=sys.stderr)
        sys.exit(2)


def _odd_words(script: Script, names: Sequence[str], words: Sequence[str]) -> int:
    """How many of `words` cannot be a value of the argument in their place."""
    return sum(not _may_be(script.by_name.get(name), name, word) for name, word in zip(names, words))


def _may_be(argument: Argument | None, name: str, word: str) -> bool:
    if name in _SWITCHES or (argument and argument.kind == "boolean"):
        return word in TRUE_FALSE
    if name in _NUMBERS or (argument and argument.kind == "whole"):
        return whole_number(word) is not None
    if argument and argument.kind == "number":
        return number(word) is not None
    if argument and argument.choices:
        return word in argument.choices
    # A path; a size that only newer models have; precisions such as fp8.
    return word not in TRUE_FALSE and number(word) is None
