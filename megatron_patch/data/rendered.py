"""The folder's own chat template: what its Jinja source makes of a conversation, and which part of it is learnt."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

from megatron_patch.data.chat_template import compile_chat_template
from megatron_patch.data.conversation import teaches
from megatron_patch.data.tokenizer import Tokenizer
from megatron_patch.errors import UserError

# render(turns, add_generation_prompt, tools) → text
Render = Callable[..., str]
# A conversation is rendered and tokenized up to each of its turns, so the work grows with the square of their number.
# At these bounds it takes about 2 s. A conversation of up to four turns may be as long as a record may be.
_MOST_TURNS = 512
_MOST_CHARACTERS = 1 << 25  # turns times characters
# The date that training and evaluation give a template which asks for today's. It is the one that LLaMA 3's templates
# write if nobody tells them a date. Today's would make other tokens of the same file each day, and a run that goes on
# would not go on with what it began with.
TRAINING_DATE = datetime(2024, 7, 26)
_MARK = "\u2042 a mark that no text holds \u2042"


def chat_renderer(tokenizer: Tokenizer, now: Callable[[], datetime] = datetime.now) -> Render:
    """A function render(turns, add_generation_prompt, tools=[]) → text by the folder's own chat template.

    The template runs in Jinja's immutable sandbox and within bounds (`chat_template`).

    now: says which date a template writes that asks for today's. For training it is TRAINING_DATE.

    Raises:
        UserError: the folder has no template.
    """
    if not tokenizer.chat_template:
        raise UserError(
            "the tokenizer's folder has no chat template (chat_template in tokenizer_config.json); choose --template llama2-chat"
        )
    plain = compile_chat_template(tokenizer.chat_template, now, **tokenizer.template_names)
    own = tokenizer.tool_template
    with_tools = compile_chat_template(own, now, **tokenizer.template_names) if own else plain

    def render(turns: list[dict[str, Any]], add_generation_prompt: bool, tools: list[Any] | None = None) -> str:
        messages = [{key: value for key, value in turn.items() if key != "weight"} for turn in turns]
        return with_tools(messages, add_generation_prompt, tools=tools) if tools else plain(messages, add_generation_prompt)

    return render


def encode_rendered(
    turns: list[dict[str, Any]], render: Render, tokenizer: Tokenizer, tools: list[Any] | None = None
) -> tuple[list[int], list[bool]]:
    """Encode the conversation as the template writes it. What each assistant turn that `teaches` adds is learnt.

    The whole text is tokenized once. To find what a turn adds, the conversation is rendered up to that turn and with
    it. An end token that the template writes after an answer belongs to what the turn adds.

    Returns:
        ids and learnt marks, two lists of one length.

    Raises:
        UserError: the template rewrites earlier turns when a later one is added, so that answers have no fixed place;
            or it passes over a part of the conversation; or the conversation is too long to be rendered once a turn.
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
    """Check that the template writes what is neither asked nor answered: tools, system turns, tools' turns and calls.

    Each is exchanged for a mark, and the conversation is rendered again. If the text stays the same, the template
    passes over it.

    Raises:
        UserError: the template passes over something.
    """

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
