"""The folder's own chat template: what its Jinja source makes of a conversation, and which of it is learnt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from megatron_patch.data.chat_template import compile_chat_template
from megatron_patch.data.conversation import teaches
from megatron_patch.data.tokenizer import Tokenizer
from megatron_patch.errors import UserError

# render(turns, add_generation_prompt, tools) → text
Render = Callable[..., str]
# A conversation is rendered and tokenized up to each of its turns, so that the work grows with their square: at these bounds
# it takes about 2 s. One of up to four turns may be as long as a record.
_MOST_TURNS = 512
_MOST_CHARACTERS = 1 << 25  # turns times characters
_MARK = "\u2042 a mark that no text holds \u2042"


def chat_renderer(tokenizer: Tokenizer) -> Render:
    """render(turns, add_generation_prompt, tools=[]) by the folder's own Jinja chat template, in Jinja's immutable
    sandbox and within bounds.

    Raises UserError where the folder has no template.
    """
    if not tokenizer.chat_template:
        raise UserError(
            "the tokenizer's folder has no chat template (chat_template in tokenizer_config.json); choose --template llama2-chat"
        )
    literal = {i: text for text, i in tokenizer.special_tokens.items()}
    fixed = {"bos_token": literal.get(tokenizer.bos, ""), "eos_token": literal.get(tokenizer.eos, "")}
    template = compile_chat_template(tokenizer.chat_template, **fixed)

    def render(turns: list[dict[str, Any]], add_generation_prompt: bool, tools: list[Any] | None = None) -> str:
        messages = [{key: value for key, value in turn.items() if key != "weight"} for turn in turns]
        return template(messages, add_generation_prompt, tools=tools or None)

    return render


def encode_rendered(
    turns: list[dict[str, Any]], render: Render, tokenizer: Tokenizer, tools: list[Any] | None = None
) -> tuple[list[int], list[bool]]:
    """What the template makes of the conversation, tokenized once; learnt is what each assistant turn that `teaches` adds to it.

    An end token that the template writes after an answer is part of what the turn adds. A template that
    rewrites earlier turns when a later one is added is refused, since its answers have no one place; so is a part of the
    conversation that the template passes over.
    """
    whole = render(turns, False, tools)
    if len(turns) > _MOST_TURNS or (len(turns) > 4 and len(turns) * len(whole) > _MOST_CHARACTERS):
        raise UserError(
            f"it has {len(turns)} turns and {len(whole)} characters, too many for a chat template, which is run up to each turn; "
            "split the conversation, or choose --template llama2-chat"
        )
    ids = tokenizer.tokenize_marked(whole)
    if not ids:
        raise UserError("it has no tokens; choose another --template, of which it makes a text")
    learnt = [False] * len(ids)
    for i, turn in enumerate(turns):
        if turn["role"] != "assistant" or not teaches(turn):
            continue
        before, after = render(turns[:i], True, tools), render(turns[: i + 1], False, tools)
        if not after.startswith(before) or not whole.startswith(after):
            raise UserError("the folder's chat template rewrites earlier turns; choose --template llama2-chat")
        begin, end = len(tokenizer.tokenize_marked(before)), len(tokenizer.tokenize_marked(after))
        learnt[begin:end] = [True] * (end - begin)
    _require_all(turns, render, tools, whole)
    return ids, learnt


def _require_all(turns: list[dict[str, Any]], render: Render, tools: list[Any] | None, whole: str) -> None:
    """UserError where what is neither asked nor answered leaves no trace in `whole`: it is rendered otherwise and compared."""

    def passed_over(number: int, turn: dict[str, Any]) -> bool:
        return render([*turns[:number], turn, *turns[number + 1 :]], False, tools) == whole

    other_call = [{"type": "function", "function": {"name": _MARK, "arguments": {}}}]
    lost = ["'tools'"] if tools and render(turns, False, None) == whole else []
    for number, turn in enumerate(turns):
        if turn["role"] in ("system", "tool") and turn["content"] and passed_over(number, {**turn, "content": _MARK}):
            lost.append(f"a {turn['role']} turn")
        if turn.get("tool_calls") and passed_over(number, {**turn, "tool_calls": other_call}):
            lost.append("a call of a tool")
    if lost:
        found = " and ".join(dict.fromkeys(lost))
        raise UserError(f"it has {found}, which the folder's chat template passes over; remove it, or choose another --template")
