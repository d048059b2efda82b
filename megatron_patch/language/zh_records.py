"""Chinese of the records in `data/`: conversations, prompts, chat templates; phrases about one record."""

from __future__ import annotations

SENTENCES = {
    # chat_template
    "it writes half of a surrogate pair, which is no character": "它写出半个代理对，不是字符",
    "it makes a text or a list of more than {} characters or items": "它生成的文本或列表超过 {0} 个字符或元素",
    "the folder's chat template has {} characters; a template has at most {}.": "该文件夹的聊天模板有 {0} 个字符；模板最多 {1} 个。",
    "it takes more than {} steps or {} s": "它超过 {0} 步或 {1} 秒",
    "it writes more than {} characters": "它写出超过 {0} 个字符",
    "a text is formatted to a width of thousands, or to one that is reckoned": "文本的格式宽度达到上千，或是算出来的",
    "it reckons with numbers of more than 30 digits": "它用到超过 30 位的数",
    "it makes lists in lists in lists": "它生成多层嵌套的列表",
    "it adds up lists": "它把列表相加",
    "the folder's chat template is no valid Jinja: {}": "该文件夹的聊天模板不是有效的 Jinja：{0}",
    "the folder's chat template refused it: {}": "该文件夹的聊天模板拒绝了它：{0}",
    # conversation
    "turn {} of {}": "{1} 的第 {0} 轮",
    "it has {}, which are two forms of a conversation; leave one of them": "它同时有 {0}，是对话的两种写法；请只保留一种",
    "its {} must be a list with at least one turn": "它的 {0} 必须是至少有一轮的列表",
    "its {} is {}, it must be a text": "它的 {0} 是 {1}，必须是文本",
    "no 'instruction'": "没有 'instruction'",
    "neither 'output' nor 'content'": "没有 'output' 或 'content'",
    "its 'history' is {}, it must be a list of [question, answer] pairs": "它的 'history' 是 {0}，必须是 [问, 答] 对的列表",
    "its 'system' and its first turn are two system messages that differ; leave one of them": (
        "它的 'system' 和第一轮是两条不同的系统消息；请只保留一条"
    ),
    "it has a system message and nothing after it; a conversation needs a user's turn, or remove it": (
        "它只有系统消息，后面没有内容；对话需要用户的一轮，否则请删去"
    ),
    "{} must be an object with {} (one of {}) and a text {}": "{0}必须是对象，含 {1}（{2} 之一）和文本 {3}",
    "{} has 'content' and 'value', which differ; leave one of them": "{0}的 'content' 与 'value' 不同；请只保留一个",
    "{} must have a text {}; it has {}": "{0}必须有文本 {1}；现在是 {2}",
    "; it has {}": "；它有 {0}",
    "it has {}; a record holds 'instruction', optionally 'input', and 'output' or 'content'{}": (
        "它{0}；一条记录应有 'instruction'，可选 'input'，以及 'output' 或 'content'{1}"
    ),
    "item {} of 'history' must be a [question, answer] pair of texts": "'history' 的第 {0} 项必须是由文本组成的 [问, 答] 对",
    "turn {} is {}'s, but the turns must be user, assistant, user, … after at most one system message; reorder or join them": (
        "第 {0} 轮是 {1} 的，而顺序必须是 user、assistant、user……，最前面至多一条系统消息；请调整顺序或合并"
    ),
    "{} is {}'s and calls a tool; only an assistant's turn can": "{0}是 {1} 的，却调用了工具；只有 assistant 的轮次可以",
    "{} holds a part of type {}; only texts can be learnt": "{0}含有类型为 {1} 的部分；只能学习文本",
    "{} has {} {}; it must be 0 or 1": "{0}的 {1} 是 {2}；必须是 0 或 1",
    "{} is {}'s and has {} {}; only an assistant's turns are learnt": "{0}是 {1} 的，而 {2} 是 {3}；只学习 assistant 的轮次",
    # packing, prompts, rendered
    "template {} is not known; it is one of {}.": "没有模板 {0}；可选值为 {1}。",
    "choose --template llama2-chat": "请用 --template llama2-chat",
    "choose --template tokenizer with a folder whose chat template has one": (
        "请用 --template tokenizer，并使用聊天模板中有它的分词器文件夹"
    ),
    "it is a conversation; pass --template llama2-chat, or --template tokenizer": (
        "它是对话；请用 --template llama2-chat 或 --template tokenizer"
    ),
    "a call of a tool": "对工具的调用",
    "a tool's turn": "工具的轮次",
    "it has {}, for which --template {} has no place; {}, or remove it": "它有 {0}，--template {1} 放不下；{2}，或删去它",
    "the tokenizer's folder has no chat template (chat_template in tokenizer_config.json); choose --template llama2-chat": (
        "分词器文件夹中没有聊天模板（tokenizer_config.json 的 chat_template）；请用 --template llama2-chat"
    ),
    "it has {} turns and {} characters, too many for a chat template, which is run up to each turn; split the conversation, or choose "
    "--template llama2-chat": (
        "它有 {0} 轮、{1} 个字符，对聊天模板来说太多（模板要逐轮运行）；请拆分对话，或用 --template llama2-chat"
    ),
    "it has no tokens; choose another --template, of which it makes a text": "它没有 token；请换一个能生成文本的 --template",
    "it has {}, which the folder's chat template passes over; remove it, or choose another --template": (
        "它有 {0}，该文件夹的聊天模板会忽略；请删去，或换一个 --template"
    ),
    "the folder's chat template rewrites earlier turns; choose --template llama2-chat": (
        "该文件夹的聊天模板会改写前面的轮次；请用 --template llama2-chat"
    ),
    "a {} turn": "{0} 轮次",
    # tool_turns
    "its {}": "它的 {0}",
    "{} has a call that is no object with a text 'name'": "{0}有一个调用不是带文本 'name' 的对象",
    "'arguments' of {}": "{0}的 'arguments'",
    "its {} must be a list of objects, or a text that holds one in JSON": "它的 {0} 必须是对象的列表，或写着这种列表的 JSON 文本",
    "'tool_calls' of {}": "{0}的 'tool_calls'",
    "{} is a text that is no JSON ({})": "{0}是文本，但不是 JSON（{1}）",
    "'function_call' of {}": "{0}的 'function_call'",
}
