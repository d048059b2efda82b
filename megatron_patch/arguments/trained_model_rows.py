"""Arguments that several commands over a trained model share. Imports no torch."""

from __future__ import annotations

from megatron_patch.arguments.argument import Argument, Range, documented, flagged
from megatron_patch.config import ALL_Q_FIRST, PER_KV_HEAD

PROMPT_TEMPLATES = ("auto", "none", "alpaca", "pretrain", "llama2-chat", "tokenizer")
PRECISIONS = ("fp16", "bf16", "fp32")  # without fp8 and its kin, which are of training
# Repetition penalties: far more than has a use, and few enough that no logit in fp32 becomes infinite or NaN.
PENALTIES = Range(0.01, 100)
_EN_CHECKPOINT = "A Megatron checkpoint of training or conversion, one of 2023, or a Hugging Face folder."


def checkpoint(name: str, zh: str) -> Argument:
    """The documented argument that names the checkpoint, under the script's own name."""
    return documented(name, "--load", "path", zh, _EN_CHECKPOINT)


CHECKPOINT = Argument(
    "CHECKPOINT", "", "path", "模型路径：Megatron checkpoint 或 huggingface 文件夹", _EN_CHECKPOINT, filled=True, required=True
)
PRECISION = documented(
    "PR", "--precision", "choice", "推理精度: fp16, bf16", choices=PRECISIONS, en="Precision of the computation."
)
TP = flagged("--tensor-model-parallel-size", "whole", "模型并行度", range=Range(1), default=1, en="GPUs that share each layer.")
PP = flagged(
    "--pipeline-model-parallel-size", "whole", "流水并行度", range=Range(1), default=1,
    en="Stages that the layers are parted into, on so many times as many GPUs.",
)  # fmt: skip
READING = (
    flagged("--tokenizer-path", "path", "分词器文件夹；空：检查点的文件夹", default="",
            en="Folder of the tokenizer; empty: the checkpoint's."),
    flagged("--gqa-layout", "choice", "2023 年的分组查询检查点（包括 LoRA 所基于的）中 QKV 行的顺序（文件本身无法判断时）；"
            "不写则取 LoRA 训练所记录的，否则为 per-kv-head",
            choices=(PER_KV_HEAD, ALL_Q_FIRST),
            en="Order of QKV rows in a grouped-query checkpoint of 2023, also one under a LoRA run's adapter, whose files do not "
            "tell it; without it, what the LoRA run recorded, else per-kv-head."),
)  # fmt: skip
