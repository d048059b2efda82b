"""From what a person asks to the token ids behind which the model writes, in the form that it was trained with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from megatron_patch.arguments.trained_model_rows import PROMPT_TEMPLATES
from megatron_patch.data.conversation import Turn
from megatron_patch.data.prompts import encode_alpaca, encode_llama2_chat, encode_pretrain
from megatron_patch.data.rendered import chat_renderer
from megatron_patch.data.tokenizer import Tokenizer
from megatron_patch.errors import UserError

Prompt = Callable[[Sequence[Turn]], list[int]]


def resolve_template(wanted: str, recorded: str | None, tokenizer: Tokenizer, *, chat: bool) -> str:
    """`wanted`, or for `auto` what was recorded; else, in a conversation, the folder's own, or LLaMA-2-chat's."""
    if wanted != "auto":
        return wanted
    if recorded is not None:
        return recorded
    if not chat:
        return "none"
    return "tokenizer" if tokenizer.chat_template else "llama2-chat"


def prompt_maker(template: str, tokenizer: Tokenizer) -> Prompt:
    """The function from turns, of which the last is the user's, to token ids up to where the answer begins.

    Args:
        template: one of PROMPT_TEMPLATES but `auto`. `none` is the text as it stands, behind the start token.

    Raises:
        UserError: there is no such template, or the tokenizer's folder has none. The function raises it for turns that
            the template has no place for.
    """
    if template == "none":
        return lambda turns: [tokenizer.bos, *tokenizer.tokenize(str(_last(turns, template)["content"]))]
    if template == "alpaca":
        return lambda turns: encode_alpaca(_as_record(_in_pairs(turns)), tokenizer)[0][:-1]
    if template == "pretrain":
        return lambda turns: encode_pretrain(_as_record(_in_pairs(turns)), tokenizer)[0][:-1]
    if template == "llama2-chat":
        return lambda turns: encode_llama2_chat(_in_pairs(turns), tokenizer)[0]
    if template == "tokenizer":
        render = chat_renderer(tokenizer)
        return lambda turns: tokenizer.tokenize_marked(render(list(turns), True))
    raise UserError(f"template {template!r} is not known; it is one of {', '.join(PROMPT_TEMPLATES)}.")


def _last(turns: Sequence[Turn], template: str) -> Turn:
    if len(turns) > 1:
        raise UserError(
            f"template {template!r} has no place for a system message or earlier turns; choose another --template, or leave "
            "them out."
        )
    return turns[-1]


def _in_pairs(turns: Sequence[Turn]) -> list[Turn]:
    """The turns, of which a system message may be the first, and then a question and an answer follow each other.

    Raises:
        UserError: they come in another order, in which the template would take one for what it is not.
    """
    roles = [turn["role"] for turn in turns]
    spoken = roles[1:] if roles[0] == "system" else roles
    if any(role != ("assistant" if place % 2 else "user") for place, role in enumerate(spoken)) or not len(spoken) % 2:
        raise UserError(
            f"the turns are those of {', '.join(map(str, roles[:20]))}; a system message may be the first, then user and "
            "assistant take turns, and the user's is the last."
        )
    return list(turns)


def _as_record(turns: Sequence[Turn]) -> dict[str, Any]:
    """Turns as a fine-tuning record without an answer."""
    spoken = [turn for turn in turns if turn["role"] != "system"]
    system = "\n\n".join(str(turn["content"]) for turn in turns if turn["role"] == "system")
    pairs = [[asked["content"], said["content"]] for asked, said in zip(spoken[:-1:2], spoken[1:-1:2])]
    return {"system": system, "history": pairs, "instruction": spoken[-1]["content"], "content": ""}
