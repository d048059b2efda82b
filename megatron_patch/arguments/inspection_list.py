"""Inspection's list. Imports no torch."""

from __future__ import annotations

from megatron_patch.arguments.argument import WHOLE_MOST, Argument, Range, Script, flagged

INSPECT = Script(
    name="megatron_patch.cli.inspection",
    path="",
    zh="查看训练读写的文件",
    en="a look into what training reads and writes",
    documented=(
        Argument("PATH", "", "path", "一对 .bin/.idx（后缀可写可不写）、微调 JSON 文件，或检查点、适配器的文件夹",
                 filled=True, required=True,
                 en="A .bin/.idx pair, with or without the ending, a fine-tuning JSON file, or the folder of a checkpoint or "
                 "an adapter."),
    ),
    flags=(
        flagged("--tokenizer-folder", "path", "解码样本，并统计微调文件的 token", filled=True,
                en="Decodes samples, and counts a fine-tuning file's tokens."),
        flagged("--samples", "whole", "显示多少个样本", range=Range(0, WHOLE_MOST), default=3,
                en="How many samples are shown."),
        flagged("--template", "choice", "微调文件：提示模板", default="alpaca",
                choices=("alpaca", "pretrain", "llama2-chat", "tokenizer"), en="For a fine-tuning file: its prompt template."),
        flagged("--seq-length", "whole", "微调文件：SEQ_LEN", range=Range(1, WHOLE_MOST), default=2048,
                en="SEQ_LEN of a fine-tuning file."),
        flagged("--max-padding-length", "whole", "微调文件：PAD_LEN；不写则与 --seq-length 相同",
                range=Range(1, WHOLE_MOST), en="PAD_LEN of a fine-tuning file; without it, --seq-length."),
    ),
)  # fmt: skip
