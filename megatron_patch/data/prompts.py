"""A fine-tuning record → ids and which of them are learnt, in one of four templates.

An `Encoded` is (ids, learnt), two lists of one length. `learnt[i]` is true if the model is to predict `ids[i]`. Nothing
is cut or padded here. Every function raises UserError for a record that it cannot take: one sentence, without file and
item number. A template refuses a record of which it would lose a part, and the sentence names that part's key.

- `alpaca`: the original's prompt for fine-tuning. A `system` replaces the prompt's first sentences. `history` comes
  before the record's own instruction in the same form, as in LLaMA-Factory's template of that name.
- `pretrain`: the original's prompt for JSON as pre-training data. It has no place for `system` and `history`.
- `llama2-chat`: Meta's, for everything but tools.
- `tokenizer`: the folder's own Jinja template. A part that it passes over is refused.

Answers in `history` are learnt like the record's own, as in LLaMA-Factory, unless a turn's `weight` is 0. Of an answer
without text nothing is learnt, not even its end token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron_patch.data.conversation import Turn, alpaca_parts, chat_turns, history, list_key, present, teaches, text, tools
from megatron_patch.data.rendered import TRAINING_DATE, chat_renderer, encode_rendered
from megatron_patch.data.tokenizer import Tokenizer
from megatron_patch.errors import UserError

Encoded = tuple[list[int], list[bool]]

# Part of a token cache's key. Raise it with every change in what these functions make of a record.
VERSION = 4
TEMPLATES = ("alpaca", "pretrain", "llama2-chat", "tokenizer")

_PREAMBLE = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
_PREAMBLE_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request."
)


def encoder(template: str, tokenizer: Tokenizer) -> Callable[[dict[str, Any]], Encoded]:
    """The function that encodes a record in `template`, one of TEMPLATES.

    Raises:
        UserError: there is no such template.
    """
    if template == "alpaca":
        return lambda record: encode_alpaca(record, tokenizer)
    if template == "pretrain":
        return lambda record: encode_pretrain(record, tokenizer)
    if template == "llama2-chat":
        return lambda record: encode_llama2_chat(_without_tools(record), tokenizer)
    if template == "tokenizer":
        render = chat_renderer(tokenizer, lambda: TRAINING_DATE)
        return lambda record: encode_rendered(chat_turns(record), render, tokenizer, tools(record))
    raise UserError(f"template {template!r} is not known; it is one of {', '.join(TEMPLATES)}.")


def encode_alpaca(record: dict[str, Any], tokenizer: Tokenizer) -> Encoded:
    """The original's prompt: BOS, the Stanford Alpaca prompt, the answer, the end token.

    The answer and its end token are learnt. A missing, null or empty `input` takes the shorter prompt. Earlier turns
    stand before `### Instruction:`, each answer with its end token and a blank line.
    """
    instruction, context, answer = _one_instruction(record)
    turns = history(record)
    system = text(record, "system")
    if turns and turns[0]["role"] == "system":
        turns, system = chat_turns(record)[1:-2], turns[0]["content"]
    _refuse_tools(turns, record, "alpaca")
    begin = system or (_PREAMBLE_INPUT if context else _PREAMBLE)
    asked = f"### Instruction:\n{instruction}\n\n" + (f"### Input:\n{context}\n\n" if context else "") + "### Response:"
    pairs = [(f"### Instruction:\n{question['content']}\n\n### Response:", said) for question, said in _pairs(record, turns)]
    pairs.append((asked, {"content": answer}))
    texts = [(f"{begin}\n\n" if number == 0 else "\n\n") + question for number, (question, _) in enumerate(pairs)]
    return _encode_pairs(zip(texts, (said for _, said in pairs)), tokenizer)


def encode_pretrain(record: dict[str, Any], tokenizer: Tokenizer) -> Encoded:
    """The original's prompt for pre-training: BOS, `instruction:…`, `input:…`, a newline, the answer, the end token.

    Without an input, `input:` is left out. Answer and end token are learnt.
    """
    instruction, context, answer = _one_instruction(record)
    _refuse([repr(key) for key in ("system", "history") if present(record, key)], "pretrain", "choose --template llama2-chat")
    _refuse_tools([], record, "pretrain")
    asked = f"instruction:{instruction}" + (f"input:{context}" if context else "") + "\n"
    return _encode_pairs([(asked, {"content": answer})], tokenizer)


def encode_llama2_chat(turns: list[Turn], tokenizer: Tokenizer) -> Encoded:
    """Meta's format for LLaMA-2-chat: `<s>[INST] <<SYS>>…<</SYS>> asked [/INST] answer </s>` for each pair of turns.

    <s> and </s> stand here by their ids; literals of them in a text stay text. Every answer that `teaches` is learnt
    with its end token. An empty answer is its end token alone.
    """
    ids: list[int] = []
    learnt: list[bool] = []
    system = f"<<SYS>>\n{turns[0]['content']}\n<</SYS>>\n\n" if turns[0]["role"] == "system" else ""
    spoken = [turn for turn in turns if turn["role"] != "system"]
    for i in range(0, len(spoken), 2):
        prompt = f"[INST] {((system if i == 0 else '') + spoken[i]['content']).strip()} [/INST]"
        begin = 1 + len(tokenizer.tokenize(prompt))
        answer, end, marked = "", [], False
        if i + 1 < len(spoken):
            said = spoken[i + 1]["content"].strip()
            answer, end, marked = f" {said} " if said else "", [tokenizer.answer_end], teaches(spoken[i + 1])
        piece = [tokenizer.bos, *tokenizer.tokenize(prompt + answer), *end]
        ids += piece
        learnt += [marked and k >= begin for k in range(len(piece))]
    return ids, learnt


def _one_instruction(record: dict[str, Any]) -> tuple[str, str, str]:
    """(instruction, input, answer) for a template that is made for those three."""
    if list_key(record):
        raise UserError("it is a conversation; pass --template llama2-chat, or --template tokenizer")
    return alpaca_parts(record)


def _pairs(record: dict[str, Any], turns: list[Turn]) -> list[tuple[Turn, Turn]]:
    """The turns as (question, answer) pairs, checked to take turns."""
    chat_turns(record)  # raises where the turns do not take turns
    return list(zip(turns[::2], turns[1::2]))


def _encode_pairs(pairs: Any, tokenizer: Tokenizer) -> Encoded:
    """Encode (text before an answer, the answer's turn) pairs one after the other, behind BOS.

    As in the original, the text and the answer are tokenized as one text. The answer begins after as many tokens as the
    text alone has. Literals of special tokens are those tokens.
    """
    ids, learnt = [tokenizer.bos], [False]
    for number, (before, turn) in enumerate(pairs):
        encode = tokenizer.tokenize_marked if number == 0 else tokenizer.tokenize_after_end
        begin, piece = len(encode(before)), [*encode(before + turn["content"]), tokenizer.answer_end]
        ids += piece
        learnt += [teaches(turn) and k >= begin for k in range(len(piece))]
    return ids, learnt


def _without_tools(record: dict[str, Any]) -> list[Turn]:
    """The record's turns, for a template that has no place for tools."""
    turns = chat_turns(record)
    _refuse_tools(turns, record, "llama2-chat")
    return turns


def _refuse_tools(turns: list[Turn], record: dict[str, Any], template: str) -> None:
    """Raise UserError if the record has tools. It names the key or the turn by which they come in."""
    found = [repr(key) for key in ("tools", "functions") if tools(record) and present(record, key)]
    found += ["a call of a tool" for turn in turns if turn.get("tool_calls")][:1]
    found += ["a tool's turn" for turn in turns if turn["role"] == "tool"][:1]
    _refuse(found, template, "choose --template tokenizer with a folder whose chat template has one")


def _refuse(found: list[str], template: str, instead: str) -> None:
    """Raise UserError if anything was found that the template has no place for. `instead` says what to do."""
    if found:
        raise UserError(f"it has {' and '.join(found)}, for which --template {template} has no place; {instead}, or remove it")
