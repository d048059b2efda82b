"""A fine-tuning record → ids and which of them are learnt. Three templates: `alpaca`, `llama2-chat`,
`tokenizer`.

An `Encoded` is (ids, learnt): two lists of one length, `learnt[i]` true where the model is to predict
`ids[i]`. Nothing is cut or padded here. Every function raises ValueError, one sentence without file and item
number, for a record that it cannot take.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron_patch.data.records import require_unicode
from megatron_patch.data.tokenizer import Tokenizer

Encoded = tuple[list[int], list[bool]]

_ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
_ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
# ShareGPT's names for who speaks, and the roles of `messages`.
_ROLES = {"system": "system", "user": "user", "human": "user", "assistant": "assistant", "gpt": "assistant",
          "chatgpt": "assistant", "bot": "assistant", "model": "assistant"}  # fmt: skip


def encoder(template: str, tokenizer: Tokenizer) -> Callable[[dict[str, Any]], Encoded]:
    """The function that encodes a record in `template`, one of TEMPLATES."""
    if template == "alpaca":
        return lambda record: encode_alpaca(record, tokenizer)
    if template == "llama2-chat":
        return lambda record: encode_llama2_chat(chat_turns(record), tokenizer)
    if template == "tokenizer":
        render = chat_renderer(tokenizer)
        return lambda record: encode_rendered(chat_turns(record), render, tokenizer)
    raise ValueError(f"template {template!r} is not known; it is one of {', '.join(TEMPLATES)}.")


TEMPLATES = ("alpaca", "llama2-chat", "tokenizer")


def encode_alpaca(record: dict[str, Any], tokenizer: Tokenizer) -> Encoded:
    """The original's prompt: BOS, the Stanford Alpaca prompt, the answer, the end token; answer and end are
    learnt.

    As in the original, prompt and answer are tokenized as one text, and the answer begins after as many
    tokens as the prompt alone has. A missing, null or empty `input` takes the shorter prompt. `</s>` in a
    text is the end token, `[PAD]` is text.
    """
    prompt, answer = alpaca_texts(record)
    begin = 1 + len(tokenizer.tokenize_marked(prompt))
    ids = [tokenizer.bos, *tokenizer.tokenize_marked(prompt + answer), tokenizer.eod]
    return ids, [i >= begin for i in range(len(ids))]


def alpaca_texts(record: dict[str, Any]) -> tuple[str, str]:
    """The prompt and the answer of an Alpaca record: `instruction`, optional `input`, and `output` or else
    `content`.
    """
    if "messages" in record or "conversations" in record:
        raise ValueError("it is a conversation; pass --template llama2-chat, or --template tokenizer")
    instruction = _text(record, "instruction")
    context = _text(record, "input") if record.get("input") is not None else ""
    answer = _text(record, "output" if "output" in record else "content")
    template = _ALPACA_INPUT if context else _ALPACA
    # Not str.format of a text that holds braces: the template is formatted, the values are only put in.
    return template.format(instruction=instruction, input=context), answer


def chat_turns(record: dict[str, Any]) -> list[dict[str, str]]:
    """`messages` (role, content) or ShareGPT's `conversations` (from, value) as a list of {role, content}.

    An Alpaca record is one turn: `instruction`, a blank line and `input` where there is one, then the answer.
    The turns must be user, assistant, user, … with at most one system message before them.
    """
    if "messages" in record:
        turns = _read_turns(record["messages"], "messages", "role", "content")
    elif "conversations" in record:
        turns = _read_turns(record["conversations"], "conversations", "from", "value")
    else:
        alpaca_texts(record)
        asked = record["instruction"] + ("\n\n" + record["input"] if record.get("input") else "")
        answer = record["output"] if "output" in record else record["content"]
        turns = [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]
    spoken = turns[1:] if turns[0]["role"] == "system" else turns
    if not spoken:
        raise ValueError("it has a system message and nothing after it; a conversation needs a user's turn, or remove it")
    for number, turn in enumerate(spoken):
        if turn["role"] != ("user", "assistant")[number % 2]:
            raise ValueError(
                f"turn {number + 1 + len(turns) - len(spoken)} is {turn['role']}'s, but the turns must be "
                "user, assistant, user, … after at most one system message; reorder or join them"
            )
    return turns


def encode_llama2_chat(turns: list[dict[str, str]], tokenizer: Tokenizer) -> Encoded:
    """Meta's format for LLaMA-2-chat: `<s>[INST] <<SYS>>…<</SYS>> asked [/INST] answer </s>` for each pair of
    turns.

    <s> and </s> stand here by their ids; literals of them in a text stay text. Learnt: every answer with its
    end token.
    """
    ids: list[int] = []
    learnt: list[bool] = []
    system = f"<<SYS>>\n{turns[0]['content']}\n<</SYS>>\n\n" if turns[0]["role"] == "system" else ""
    spoken = [turn["content"] for turn in turns if turn["role"] != "system"]
    for i in range(0, len(spoken), 2):
        prompt = f"[INST] {((system if i == 0 else '') + spoken[i]).strip()} [/INST]"
        begin = 1 + len(tokenizer.tokenize(prompt))
        answer, end = (f" {spoken[i + 1].strip()} ", [tokenizer.eod]) if i + 1 < len(spoken) else ("", [])
        piece = [tokenizer.bos, *tokenizer.tokenize(prompt + answer), *end]
        ids += piece
        learnt += [k >= begin for k in range(len(piece))]
    return ids, learnt


def chat_renderer(tokenizer: Tokenizer) -> Callable[[list[dict[str, str]], bool], str]:
    """render(turns, add_generation_prompt) by the folder's own Jinja chat template, in Jinja's immutable
    sandbox.

    Raises ValueError where the folder has no template.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            "the tokenizer's folder has no chat template (chat_template in tokenizer_config.json); "
            "choose --template llama2-chat"
        )
    from megatron_patch.data.chat_template import compile_chat_template

    literal = {i: text for text, i in tokenizer.special_tokens.items()}
    fixed = {"bos_token": literal.get(tokenizer.bos, ""), "eos_token": literal.get(tokenizer.eod, "")}
    return compile_chat_template(tokenizer.chat_template, **fixed)


def encode_rendered(
    turns: list[dict[str, str]], render: Callable[[list[dict[str, str]], bool], str], tokenizer: Tokenizer
) -> Encoded:
    """What the template makes of the conversation, tokenized once; learnt is what each assistant turn adds to
    it.

    An end token that the template writes after an answer is part of what the turn adds. A template that
    rewrites earlier turns when a later one is added is refused, since its answers have no one place.
    """
    whole = render(turns, False)
    ids = tokenizer.tokenize_marked(whole)
    learnt = [False] * len(ids)
    for i, turn in enumerate(turns):
        if turn["role"] != "assistant":
            continue
        before, after = render(turns[:i], True), render(turns[: i + 1], False)
        if not after.startswith(before) or not whole.startswith(after):
            raise ValueError(
                "the folder's chat template rewrites earlier turns; choose --template llama2-chat"
            )
        begin, end = len(tokenizer.tokenize_marked(before)), len(tokenizer.tokenize_marked(after))
        learnt[begin:end] = [True] * (end - begin)
    return ids, learnt


def _read_turns(turns: Any, field: str, who: str, said: str) -> list[dict[str, str]]:
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"its {field!r} must be a list with at least one turn")
    out = []
    for number, turn in enumerate(turns, start=1):
        role = turn.get(who) if isinstance(turn, dict) else None
        if not isinstance(role, str) or role not in _ROLES or not isinstance(turn.get(said), str):
            raise ValueError(
                f"turn {number} of {field!r} must be an object with {who!r} "
                f"(one of {', '.join(_ROLES)}) and a text {said!r}"
            )
        out.append({"role": _ROLES[role], "content": require_unicode(turn[said])})
    return out


def _text(record: dict[str, Any], key: str) -> str:
    if key not in record:
        wanted = "neither 'output' nor 'content'" if key == "content" else f"no {key!r}"
        raise ValueError(
            f"it has {wanted}; a record holds 'instruction', optionally 'input', and 'output' or 'content'"
        )
    if not isinstance(record[key], str):
        raise ValueError(f"its {key!r} is {type(record[key]).__name__}, it must be a text")
    return require_unicode(record[key])
