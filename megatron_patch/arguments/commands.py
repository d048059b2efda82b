"""Whole commands, to be copied and run: the example of a usage text, a command in the documented order, the next step.

Imports no torch.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from megatron_patch.arguments.argument import Script
from megatron_patch.arguments.conversion_list import CONVERT
from megatron_patch.arguments.evaluation_list import EVALUATE
from megatron_patch.arguments.generation_list import GENERATE
from megatron_patch.arguments.preparation_list import PREPARE
from megatron_patch.arguments.training_list import FINETUNE, FINETUNE_WITH_GA, PRETRAIN
from megatron_patch.folders.checkout import ROOT
from megatron_patch.language.sentences import fill

_SAMPLES = "tests/golden"  # small files of every kind, in the checkout
_SMALL = {"MEGATRON_PATH": "none", "MEGATRON_PATCH_PATH": "."}
# What a script does with them, from the checkout's root, in less than a minute without a GPU.
_EXAMPLES: dict[str, dict[str, str]] = {
    CONVERT.name: {
        **_SMALL, "SOURCE_CKPT_PATH": f"{_SAMPLES}/hf_mha", "TARGET_CKPT_PATH": "example/tiny-megatron", "MN": "auto",
    },
    PREPARE.name: {
        **_SMALL, "input_data_dir": f"{_SAMPLES}/data/corpus.jsonl", "tokenizer": "llamabpe", "output_data_dir": "example/data",
        "load_dir": f"{_SAMPLES}/hf_mha",
    },
    PRETRAIN.name: {
        **_SMALL, "MODEL_SIZE": "tiny", "BATCH_SIZE": "2", "GLOBAL_BATCH_SIZE": "16", "LR": "1e-3", "MIN_LR": "1e-4",
        "SEQ_LEN": "128", "PAD_LEN": "128", "DATASET_PATH": f"{_SAMPLES}/data/corpus_text_document",
        "PRETRAIN_CHECKPOINT_PATH": "none", "TRAIN_TOKENS": "40960", "WARMUP_TOKENS": "4096", "OUTPUT_BASEPATH": "example/output",
    },
    FINETUNE.name: {
        **_SMALL, "MODEL_SIZE": "auto", "LR": "1e-3", "MIN_LR": "1e-4", "SEQ_LEN": "128",
        "TRAIN_DATASET_PATH": f"{_SAMPLES}/sft/alpaca_output.json", "VALID_DATASET_PATH": f"{_SAMPLES}/sft/alpaca_output.json",
        "PRETRAIN_CHECKPOINT_PATH": f"{_SAMPLES}/megatron_2023/september/mha_tp1_pp1", "EPOCH": "1",
        "OUTPUT_BASEPATH": "example/output",
    },
    FINETUNE_WITH_GA.name: {
        **_SMALL, "MODEL_SIZE": "auto", "GLOBAL_BATCH_SIZE": "4", "LR": "1e-3", "MIN_LR": "1e-4", "SEQ_LEN": "128",
        "DATASET_PATH": f"{_SAMPLES}/sft/alpaca_output.json", "VALID_DATASET_PATH": f"{_SAMPLES}/sft/alpaca_output.json",
        "PRETRAIN_CHECKPOINT_PATH": f"{_SAMPLES}/megatron_2023/september/mha_tp1_pp1", "TRAIN_ITERS": "6", "WARMUP_ITERS": "2",
        "OUTPUT_BASEPATH": "example/output",
    },
    EVALUATE.name: {
        **_SMALL, "MODEL_SIZE": "auto", "BATCH_SIZE": "2", "SEQ_LEN": "128", "PAD_LEN": "80", "PR": "fp32",
        "DATASET_PATH": f"{_SAMPLES}/data/corpus_text_document",
        "PRETRAIN_CHECKPOINT_PATH": f"{_SAMPLES}/megatron_2023/september/mha_tp1_pp1",
    },
    GENERATE.name: {
        **_SMALL, "CHECKPOINT_PATH": f"{_SAMPLES}/megatron_2023/september/mha_tp1_pp1", "MODEL_SIZE": "auto", "BS": "1",
        "SEQ_LEN": "128", "PAD_LEN": "80", "PR": "fp32", "TOP_K": "0", "INPUT_SEQ_LEN": "64", "OUTPUT_SEQ_LEN": "32",
        "INPUT_FILE": "none", "OUTPUT_FILE": "example/answers.jsonl", "TOP_P": "0.9", "TEMPERATURE": "1.0",
        "REPETITION_PENALTY": "1.1",
    },
}  # fmt: skip


def command(script: Script, values: Mapping[str, object], flags: Sequence[str] = (), path: str | Path | None = None) -> str:
    """The command line of a script, safe for a shell.

    Args:
        values: documented name → value. An argument that is left out has the value of the documented commands; if they
            have none, its name stands there, and the user replaces it.
        path: of the script; by default its full path.
    """
    words = [str(values.get(one.name, one.example or one.name)) for one in script.documented]
    return shlex.join(["sh", str(path or ROOT / script.path), *words, *flags])


def example(script: Script) -> str:
    """A command that works as it is, with small files of the checkout; without those files the documented command."""
    if not (ROOT / _SAMPLES).is_dir() or script.name not in _EXAMPLES:
        return command(script, {})
    return f"cd {shlex.quote(str(ROOT))} && {command(script, _EXAMPLES[script.name], path=script.path)}"


def after_conversion(target: str | Path, megatron_path: str, tp: int, pp: int, extra_vocab_size: int) -> str:
    """Pre-training from a checkpoint that was converted to Megatron's format."""
    known = {"MODEL_SIZE": "auto", "EXTRA_VOCAB_SIZE": extra_vocab_size, "TP": tp, "PP": pp}
    return _next(PRETRAIN, MEGATRON_PATH=megatron_path, PRETRAIN_CHECKPOINT_PATH=_whole(target), **known)


def after_preparation(pairs: Sequence[tuple[int, str]], megatron_path: str | None) -> str:
    """Pre-training on the pairs that were made, (tokens, prefix) each: on one, or on a blend that reads all as one."""
    blend = " ".join(f"{tokens} {_whole(prefix)}" for tokens, prefix in pairs)
    data = _whole(pairs[0][1]) if len(pairs) == 1 else blend
    return _next(PRETRAIN, MEGATRON_PATH=megatron_path or "none", MODEL_SIZE="auto", DATASET_PATH=data)


def after_split(train: str | Path, valid: str | Path, megatron_path: str | None) -> str:
    """Fine-tuning on the files of a split that was made."""
    files = {"TRAIN_DATASET_PATH": _whole(train), "VALID_DATASET_PATH": _whole(valid)}
    return _next(FINETUNE, MEGATRON_PATH=megatron_path or "none", MODEL_SIZE="auto", **files)


def after_training(checkpoint: str | Path, target: str | Path, tp: int, pp: int) -> str:
    """The conversion of a run's last checkpoint to Hugging Face."""
    paths = {"MEGATRON_PATH": "none", "SOURCE_CKPT_PATH": _whole(checkpoint), "TARGET_CKPT_PATH": _whole(target)}
    return _next(CONVERT, **paths, TP=tp, PP=pp, MN="auto", mg2hf="true")


def _next(script: Script, **known: object) -> str:
    """The next step as a sentence, with the command on a line of its own."""
    values = {"MEGATRON_PATCH_PATH": ROOT, **known}
    left = [one.name for one in script.documented if one.name not in values and not one.example]
    said = fill("Next, with your own {}:", ", ".join(left)) if left else fill("Next:")
    return f"{said}\n  {command(script, values)}"


def _whole(path: str | Path) -> Path:
    return Path(path).absolute()
