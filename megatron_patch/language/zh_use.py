"""Chinese of `evaluate/`, `generate/` and `inspection/`: uses of a model, and looks into files."""

from __future__ import annotations

SENTENCES = {
    # evaluate
    "{}: nothing in its {} documents is to be predicted; PAD_LEN may be too small, or answers empty.": (
        "{0}：它的 {1} 个文档中没有要预测的内容；可能 PAD_LEN 太小，或回答为空。"
    ),
    "instruction, messages or conversations (fine-tuning data), or text or content (documents)": (
        "instruction、messages、conversations（微调数据）、text、content（文档）"
    ),
    "{}: none of its first {} records has one of {}; write a file of such records.": (
        "{0}：它开头的 {1} 条记录中没有一条含有 {2} 之一；请写由这种记录组成的文件。"
    ),
    "{} holds no text; write another file.": "{0} 中没有文本；请写别的文件。",
    "The checkpoint's run had --packing and cut samples at its SEQ_LEN, {}; PAD_LEN here is {}, so this loss is over other tokens than "
    "that run's: write SEQ_LEN and PAD_LEN {} for the same ones.": (
        "该检查点的训练使用了 --packing，样本按其 SEQ_LEN {0} 截断；而这里的 PAD_LEN 是 {1}，因此这个 loss 与训练时统计的 token 不同："
        "要统计相同的 token，SEQ_LEN 和 PAD_LEN 请写 {2}。"
    ),
    "{} is not UTF-8 (byte {}); save it as UTF-8.": "{0} 不是 UTF-8（第 {1} 字节）；请保存为 UTF-8。",
    # generate
    "{}, line {}": "{0} 第 {1} 行",
    "write an OUTPUT_FILE that does not exist yet, or remove this one.": "请写一个尚不存在的 OUTPUT_FILE，或删除这一个。",
    '{} holds no query; write one JSON object a line, such as {{"query": "Once upon a time"}}.': (
        '{0} 中没有 query；请每行写一个 JSON 对象，如 {{"query": "Once upon a time"}}。'
    ),
    '{} is {}; it must be an object with a text, such as {{"query": "…"}}.': '{0} 是 {1}；必须是含文本的对象，如 {{"query": "…"}}。',
    "{}, line {} is no answer to INPUT_FILE's queries; {}": "{0} 第 {1} 行不是对 INPUT_FILE 中 query 的回答；{2}",
    "{}, line {} was answered from another checkpoint or with other settings; {}": "{0} 第 {1} 行是用别的检查点或设置回答的；{2}",
    "{} of {} answers are not beside {}; where processes run on several nodes, OUTPUT_FILE must lie in a folder that all of them share: "
    "write such a one.": (
        "{1} 个回答中有 {0} 个不在 {2} 旁边；进程运行在多个节点上时，OUTPUT_FILE 必须位于所有节点共享的文件夹：请写这样的路径。"
    ),
    '{} is no JSON ({}); write one object a line, such as {{"query": "…"}}.': '{0} 不是 JSON（{1}）；请每行写一个对象，如 {{"query": "…"}}。',
    "{} cannot be used: {}; mend the line.": "{0} 不能使用：{1}；请改正这一行。",
    "{} is not UTF-8 ({}); save it as UTF-8.": "{0} 不是 UTF-8（{1}）；请保存为 UTF-8。",
    "{} of {} queries are answered in {} already; the rest follows.": "{1} 个 query 中有 {0} 个已在 {2} 中回答；继续其余的。",
    "{} of {} prompts were longer than INPUT_SEQ_LEN = {}; their last tokens were used.": (
        "{1} 个提示中有 {0} 个长于 INPUT_SEQ_LEN = {2}；只使用了末尾的 token。"
    ),
    "the template makes an empty prompt of it; choose another --template.": "模板由它生成的提示为空；请换一个 --template。",
    "the model gives NaN where logits should be: its weights hold NaN, or fp16 cannot hold its numbers; write bf16 or fp32 for PR, or "
    "take another checkpoint.": (
        "模型的 logits 是 NaN：其权重含有 NaN，或 fp16 无法表示其数值；PR 请写 bf16 或 fp32，或换一个检查点。"
    ),
    "its {} KV groups and {} rows of the MLP must be multiples of it": "其 {0} 个 KV 组和 MLP 的 {1} 行必须是它的倍数",
    "{} has room for the keys and values of {} tokens beside the weights, and one request may have {}: use shorter prompts and answers, "
    "or a higher TP on more GPUs.": (
        "{0} 除权重外只能容纳 {1} 个 token 的 KV cache，而一个请求可能有 {2} 个：请缩短提示和回答，或用更多 GPU 提高 TP。"
    ),
    "TP is {}, which does not divide the model of {}; {}.": "TP 是 {0}，不能整除 {1} 的模型；{2}。",
    "TP is {}: {}": "TP 是 {0}：{1}",
    "PP is {}, which does not divide the {} layers of {}; write one that does.": "PP 是 {0}，不能整除 {2} 的 {1} 层；请写能整除的值。",
    "template {} has no place for a system message or earlier turns; choose another --template, or leave them out.": (
        "模板 {0} 没有系统消息或先前轮次的位置；请换一个 --template，或不要它们。"
    ),
    "the turns are those of {}; a system message may be the first, then user and assistant take turns, and the user's is the last.": (
        "各轮依次是 {0}；最前面可以有一条系统消息，然后 user 与 assistant 交替，最后一轮是 user。"
    ),
    "{} processes were started for TP × PP = {}; their number must be a multiple of it.": (
        "启动了 {0} 个进程，而 TP × PP = {1}；进程数必须是它的倍数。"
    ),
    "{} is {}; it must be {}.": "{0} 是 {1}；必须{2}。",
    "at least 0": "不小于 0",
    "from 0 to 1": "在 0 到 1 之间",
    "from 0.01 to 100": "在 0.01 到 100 之间",
    "Prompts are written in the form {}.": "提示按 {0} 的格式书写。",
    "Fine-tuning samples are written in the form {}.": "微调样本按 {0} 的格式书写。",
    "Nothing beside the checkpoint says in which form it was trained: write --template if that is another.": (
        "检查点旁没有记录其训练时的格式：如果不是这一种，请写 --template。"
    ),
    "Type a message and Enter. /new begins a new conversation, /exit ends (so does Ctrl-D); Ctrl-C ends an answer.": (
        "输入消息后按回车。/new 开始新的对话，/exit（或 Ctrl-D）退出；Ctrl-C 中止当前回答。"
    ),
    "The conversation is longer than {} tokens; the last ones were used. /new begins a new one.": (
        "对话超过 {0} 个 token；只使用了末尾的。/new 开始新的对话。"
    ),
    "This cannot be asked: {}": "无法提问：{0}",
    "LLaMA with {} parameters in {} on {}, from {}.": "LLaMA，{0} 个参数，{1}，运行在 {2} 上，来自 {3}。",
    "the tokenizer in {} has {} tokens and the model {} rows; write --tokenizer-path and the folder of the tokenizer that the model was "
    "trained with.": "{0} 中的分词器有 {1} 个 token，而模型有 {2} 行；请写 --tokenizer-path 和训练该模型所用分词器的文件夹。",
    # inspection
    "{} MB in {}": "{0} MB，位于 {1}",
    "format: {}": "格式：{0}",
    "{} model tensors, {} numbers; {} optimizer tensors; {} other objects": "{0} 个模型张量，{1} 个数；{2} 个优化器张量；{3} 个其他对象",
    "{} files, checkpoint version {}": "{0} 个文件，checkpoint version {1}",
    "model: {} layers, hidden {}, ffn {}, {} heads, {} KV groups, vocabulary {} + {}, {}; made for TP {}, PP {}": (
        "模型：{0} 层，hidden {1}，ffn {2}，{3} 个注意力头，{4} 个 KV 组，词表 {5} + {6}，{7}；按 TP {8}、PP {9} 生成"
    ),
    "written by megatron_patch {}, megatron-core {}": "由 megatron_patch {0}、megatron-core {1} 写出",
    "tokenizer: {}": "分词器：{0}",
    "tokenizer: none in this folder": "分词器：此文件夹中没有",
    "  {}  {}  {}  {} chunks": "  {0}  {1}  {2}  {3} 个分块",
    "{} is no checkpoint of a language model of 2023: model is not in it.": "{0} 不是 2023 年格式的语言模型检查点：其中没有 model。",
    "recorded arguments: {}": "记录的参数：{0}",
    "states: {}": "状态：{0}",
    "the lowest validation loss: iteration {}": "验证 loss 最低：第 {0} 次迭代",
    "types: {}": "类型：{0}",
    "checkpoint {}, {} ({})": "检查点 {0}，{1}（{2}）",
    "the 2023 layout": "2023 年格式",
    "indexed dataset {}.bin/.idx": "索引数据 {0}.bin/.idx",
    "ids from {} to {}, all of them read": "token 编号 {0} 到 {1}，已全部读取",
    "ids from {} to {}, a sample of them read": "token 编号 {0} 到 {1}，为抽样读取",
    "fine-tuning file {}": "微调数据文件 {0}",
    "ids from {} to {} of {}; template {}": "token 编号 {0} 到 {1}，共 {2}；模板 {3}",
    "lengths in {}: {} to {}, mean {}, median {}": "长度（{0}）：{1} 到 {2}，平均 {3}，中位数 {4}",
    "  {} to {} {} {}": "  {0} 到 {1} {2} {3}",
    "{} documents, {} sequences, {} tokens, {} ids, {} MB": "{0} 个文档，{1} 个序列，{2} 个 token，{3} 编号，{4} MB",
    "made from {} files; {} bad and {} empty records skipped": "由 {0} 个文件生成；跳过 {1} 条坏记录和 {2} 条空记录",
    "that is within the tokenizer's vocabulary of {}": "在分词器大小为 {0} 的词表之内",
    "that is OUTSIDE the tokenizer's vocabulary of {}": "超出分词器大小为 {0} 的词表",
    "{} of the first {} documents end with the end token {}": "前 {1} 个文档中有 {0} 个以结束符 {2} 结尾",
    "document {}, {} tokens, all of them learnt: {}{}": "文档 {0}，{1} 个 token，全部参与学习：{2}{3}",
    "{} samples; fields: {}": "{0} 条样本；字段：{1}",
    "tokens": "token",
    "characters of JSON": "JSON 字符",
    "add --tokenizer-folder to see tokens, what is learnt and what is cut": "加 --tokenizer-folder 可查看 token、哪些参与学习、哪些被截断",
    "sample {}, {} tokens: {}": "样本 {0}，{1} 个 token：{2}",
    "{} cannot be read as JSON objects": "{0}无法读作 JSON 对象",
}
