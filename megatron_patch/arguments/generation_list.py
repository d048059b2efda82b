"""Text generation's list. Imports no torch."""

from __future__ import annotations

from megatron_patch.arguments.argument import Range, Script, documented, flagged, numbered
from megatron_patch.arguments.documented_rows import rows
from megatron_patch.arguments.trained_model_rows import PENALTIES, PP, PRECISION, PROMPT_TEMPLATES, READING, checkpoint

_ONE = Range(1)

GENERATE = Script(
    name="run_text_generation_megatron_llama.sh",
    path="examples/llama2/run_text_generation_megatron_llama.sh",
    zh="用 LLaMA-2 生成文本",
    en="text generation with LLaMA-2",
    documented=numbered(
        *rows("ENV MEGATRON_PATH MEGATRON_PATCH_PATH"),
        checkpoint("CHECKPOINT_PATH", "模型路径"),
        *rows("MODEL_SIZE TP"),
        documented("BS", "--micro-batch-size", "whole", "同时生成的样本数", range=_ONE,
                   en="Requests that are answered at once; a place that becomes free is filled with the next one."),
        documented("SEQ_LEN", "--seq-length", "whole", "序列长度", range=_ONE,
                   en="Tokens of a sequence, prompt and answer together: at least INPUT_SEQ_LEN + OUTPUT_SEQ_LEN."),
        documented("PAD_LEN", "--max-padding-length", "whole", "Padding长度", range=_ONE,
                   en="Not used: prompts of unequal length need no padding."),
        *rows("EXTRA_VOCAB_SIZE"),
        PRECISION,
        documented("TOP_K", "--top-k", "whole", "采样候选token数: 0为不限制",
                   en="Only this many of the most probable tokens may come; 0: all, 1: the most probable one always."),
        documented("INPUT_SEQ_LEN", "--input-len", "whole", "输入序列长度", range=_ONE,
                   en="Most tokens of a prompt; of a longer one the last ones are used."),
        documented("OUTPUT_SEQ_LEN", "--out-seq-length", "whole", "输出序列长度", range=_ONE,
                   en="Most tokens of an answer."),
        documented("INPUT_FILE", "--text-generate-input-file", "path", "输入文件, 每行一个含query的JSON: none为交互模式",
                   en="JSON Lines of objects with query; none opens a prompt on the terminal."),
        documented("OUTPUT_FILE", "--text-generate-output-file", "path", "输出文件",
                   en="JSON Lines of index, query, response and finish_reason; a run that ended early goes on with it."),
        documented("TOP_P", "--top-p", "number", "核采样概率: 0为不限制", range=Range(0, 1), example="0.85",
                   en="Only the most probable tokens may come that reach this probability together; 0 or 1: all."),
        documented("TEMPERATURE", "--temperature", "number", "采样温度", example="1",
                   en="Logits are divided by it; 0: the most probable token always."),
        documented("REPETITION_PENALTY", "--repetition-penalty", "number", "重复惩罚: 1为不惩罚, 可取1.1至1.5",
                   range=PENALTIES, example="1.2",
                   en="Tokens that came before become less probable; 1: no penalty."),
    ),
    flags=(
        flagged("--seed", "whole", "采样的随机种子；第 i 条用 seed + i", default=1234,
                en="Seed of the sampling; request number i takes seed + i."),
        flagged("--template", "choice", "提示模板；auto：微调检查点及其转换结果用训练时的模板，"
                "否则文件为原文、终端为文件夹自带的对话模板，没有则为 llama2-chat",
                choices=PROMPT_TEMPLATES, default="auto",
                en="Form of a prompt; auto: what the checkpoint was fine-tuned with, also after a conversion. Without that, a "
                "file's text as it stands, and on the terminal the folder's own chat template, or llama2-chat without one."),
        flagged("--system", "text", "系统提示", default="", en="A system message before each prompt."),
        flagged("--stop", "texts", "遇到其中任一文本即停止；不写入回答",
                en="Texts that end an answer; they are not part of it."),
        PP,
        *READING,
    ),
)  # fmt: skip
