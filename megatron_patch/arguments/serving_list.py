"""The lists of `megatron-patch chat` and `megatron-patch serve`. Imports no torch."""

from __future__ import annotations

from megatron_patch.arguments.argument import Range, Script, flagged
from megatron_patch.arguments.trained_model_rows import CHECKPOINT, PENALTIES, PP, PRECISIONS, PROMPT_TEMPLATES, READING, TP

_ONE = Range(1)
_MODEL = (
    flagged("--precision", "choice", "推理精度；auto：有 GPU 时 bf16，否则 fp32", default="auto",
            choices=("auto", *PRECISIONS),
            en="Precision of the computation; auto: bf16 on GPUs, fp32 on CPUs."),
    TP,
    PP,
    flagged("--length", "whole", "提示与回答合计的最大 token 数；不写则为模型上限，至多 4096", range=Range(2),
            en="Most tokens of a conversation, the answer included; without it the model's limit, at most 4096."),
    flagged("--max-new-tokens", "whole", "一个回答的最大 token 数", range=_ONE, default=512, en="Most tokens of an answer."),
    flagged("--template", "choice", "提示模板；auto：微调检查点及其转换结果用训练时的模板，"
            "否则用文件夹自带的对话模板，没有则为 llama2-chat",
            choices=PROMPT_TEMPLATES, default="auto",
            en="Form of a prompt; auto: what the checkpoint was fine-tuned with, also after a conversion; without that, the "
            "folder's own chat template, or llama2-chat where it has none."),
    flagged("--system", "text", "系统提示", default="", en="A system message before each conversation that has none."),
    flagged("--temperature", "number", "采样温度；0 总取最可能的 token", default=0.7,
            en="Logits are divided by it; 0: the most probable token always."),
    flagged("--top-p", "number", "核采样概率；0 为不限制", range=Range(0, 1), default=0.9,
            en="Only the most probable tokens may come that reach this probability together; 0 or 1: all."),
    flagged("--top-k", "whole", "采样候选 token 数；0 为不限制", default=0, en="Only this many tokens may come; 0: all."),
    flagged("--repetition-penalty", "number", "重复惩罚；1 为不惩罚", range=PENALTIES, default=1.0,
            en="Tokens that came before become less probable; 1: no penalty."),
    flagged("--seed", "whole", "采样的随机种子", default=1234, en="Seed of the sampling."),
    *READING,
)  # fmt: skip

CHAT = Script(
    name="megatron-patch chat",
    path="",
    zh="在终端与模型对话",
    en="a conversation with a model on the terminal",
    documented=(CHECKPOINT,),
    flags=_MODEL,
)

SERVE = Script(
    name="megatron-patch serve",
    path="",
    zh="以 OpenAI 兼容接口提供模型",
    en="a model behind OpenAI's interface, to look at what one trained",
    documented=(CHECKPOINT,),
    flags=(
        *_MODEL,
        flagged("--host", "text", "监听地址；默认只有本机可访问", default="127.0.0.1",
                en="Address to listen at; by default this machine alone reaches it."),
        flagged("--port", "whole", "监听端口", range=Range(1, 65535), default=8000, en="Port to listen at."),
        flagged("--api-key", "text", "客户端必须给出的密钥；空：取环境变量 MEGATRON_PATCH_API_KEY，也没有则不需要", default="",
                en="The key that clients must give; empty: the environment's MEGATRON_PATCH_API_KEY, or none without it."),
        flagged("--served-model-name", "text", "接口中的模型名；空：检查点文件夹名", default="",
                en="The model's name in the interface; empty: the name of the checkpoint's folder."),
        flagged("--requests", "whole", "同时回答的请求数", range=_ONE, default=16, en="Requests that are answered at once."),
        flagged("--queue", "whole", "等待的请求数上限，超出则拒绝", default=128,
                en="Requests that may wait; what comes beyond them is refused."),
    ),
)  # fmt: skip
