"""Evaluation's list. Imports no torch."""

from __future__ import annotations

from megatron_patch.arguments.argument import Range, Script, documented, flagged, numbered
from megatron_patch.arguments.documented_rows import rows
from megatron_patch.config import ALL_Q_FIRST, PER_KV_HEAD

_ONE = Range(1)

EVALUATE = Script(
    name="run_evaluate_megatron_llama.sh",
    path="examples/llama2/run_evaluate_megatron_llama.sh",
    zh="评估 LLaMA-2",
    en="evaluation of LLaMA-2",
    documented=numbered(
        *rows("ENV MEGATRON_PATH MEGATRON_PATCH_PATH MODEL_SIZE"),
        documented("BATCH_SIZE", "--micro-batch-size", "whole", "每卡一次前向的样本数", range=_ONE,
                   en="Sequences of one forward pass on one GPU."),
        documented("SEQ_LEN", "--seq-length", "whole", "序列长度", range=_ONE,
                   en="Tokens of a window over long texts; the most that PAD_LEN may be."),
        documented("PAD_LEN", "--max-padding-length", "whole", "Padding长度", range=Range(2),
                   en="Fine-tuning data: samples are cut to it, as in training. Other data does not use it."),
        *rows("EXTRA_VOCAB_SIZE"),
        documented("PR", "--precision", "choice", "推理精度: fp16, bf16", choices=("fp16", "bf16", "fp32"),
                   en="Precision of the computation."),
        *rows("TP PP"),
        documented("DATASET_PATH", "--data-path", "data", "评估数据集路径, 可用空格或逗号分隔多个",
                   en="Fine-tuning JSON, plain text, JSON Lines with text, or the prefix of a .bin/.idx pair; several between "
                   "blanks or commas."),
        documented("PRETRAIN_CHECKPOINT_PATH", "--load", "path", "待评估的模型路径",
                   en="A Megatron checkpoint of training or conversion, one of 2023, or a Hugging Face folder."),
    ),
    flags=(
        flagged("--stride", "whole", "长文本的滑动窗口步长；不写则为 SEQ_LEN 的一半", range=_ONE,
                en="Tokens from the beginning of a window to the next one's; without it, half of SEQ_LEN."),
        flagged("--template", "choice", "微调数据：提示模板", default="alpaca",
                choices=("alpaca", "pretrain", "llama2-chat", "tokenizer"), en="Fine-tuning data: its prompt template."),
        flagged("--results", "path", "结果文件", default="results.json", en="The file of the results."),
        flagged("--max-bad-fraction", "number", "允许不可用记录的比例", range=Range(0, 1), default=0.01,
                en="Of a file's records, the share that may be unusable; they are left out."),
        flagged("--tokenizer-path", "path", "分词器文件夹；空：检查点的文件夹", default="",
                en="Folder of the tokenizer; empty: the checkpoint's."),
        flagged("--gqa-layout", "choice", "2023 年的分组查询检查点中 QKV 行的顺序（文件本身无法判断时）",
                choices=(PER_KV_HEAD, ALL_Q_FIRST), default=PER_KV_HEAD,
                en="Order of QKV rows in a grouped-query checkpoint of 2023 whose files do not tell it."),
    ),
)  # fmt: skip
