"""Evaluation's list. Imports no torch."""

from __future__ import annotations

from megatron_patch.arguments.argument import Range, Script, documented, flagged, numbered
from megatron_patch.arguments.documented_rows import rows
from megatron_patch.arguments.trained_model_rows import PRECISION, READING, checkpoint

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
                   en="Fine-tuning data: samples are cut to it, as in training; for a run with --packing, which cuts at SEQ_LEN, "
                   "write that. Other data does not use it."),
        *rows("EXTRA_VOCAB_SIZE"),
        PRECISION,
        *rows("TP PP"),
        documented("DATASET_PATH", "--data-path", "data", "评估数据集路径, 可用空格或逗号分隔多个",
                   en="Fine-tuning data or documents with text (JSON or Parquet), plain text, or the prefix of a .bin/.idx pair; "
                   "several between blanks or commas."),
        checkpoint("PRETRAIN_CHECKPOINT_PATH", "待评估的模型路径"),
    ),
    flags=(
        flagged("--stride", "whole", "长文本的滑动窗口步长；不写则为 SEQ_LEN 的一半", range=_ONE,
                en="Tokens from the beginning of a window to the next one's; without it, half of SEQ_LEN."),
        flagged("--template", "choice", "微调数据：提示模板；auto：checkpoint 微调时的模板（转换后也是），否则 alpaca",
                choices=("auto", "alpaca", "pretrain", "llama2-chat", "tokenizer"), default="auto",
                en="Fine-tuning data: its prompt template; auto: what the checkpoint was fine-tuned with, also after a "
                "conversion, else alpaca."),
        flagged("--results", "path", "结果文件", default="results.json", en="The file of the results."),
        flagged("--max-bad-fraction", "number", "允许不可用记录的比例", range=Range(0, 1), default=0.01,
                en="Of a file's records, the share that may be unusable; they are left out."),
        *READING,
    ),
)  # fmt: skip
