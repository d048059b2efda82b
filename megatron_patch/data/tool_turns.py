"""Tools in a fine-tuning record: their definitions and calls, in the form that chat templates take.

OpenAI's `tools` and its older `functions` define tools. OpenAI's `tool_calls`, its older `function_call` and ShareGPT's
turns `function_call` call them. Data sets often hold all of these as JSON inside a text.
"""

from __future__ import annotations

import json
from typing import Any

from megatron_patch.errors import UserError


def definitions(found: dict[str, Any]) -> list[Any]:
    """The tools under `tools` or `functions`: each as {"type": "function", "function": {…}}, or as it stands.

    Raises:
        UserError: they are no list of objects.
    """
    out: list[Any] = []
    for key, value in found.items():
        items = _parsed(value, f"its {key!r}")
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise UserError(f"its {key!r} must be a list of objects, or a text that holds one in JSON")
        out += [{"type": "function", "function": item} if key == "functions" else item for item in items]
    return out


def as_calls(turn: dict[str, Any], role: str, content: Any, place: str) -> list[Any]:
    """The calls in an assistant's turn; most turns have none.

    Args:
        role: as the record spells it.
        content: the turn's content, which holds the call in ShareGPT's form.
        place: what to call the turn in a sentence.

    Raises:
        UserError: a call is no object with a name.
    """
    if role == "function_call":
        calls = _parsed(content, place)
    elif _is_there(turn, "tool_calls"):
        calls = _parsed(turn["tool_calls"], f"'tool_calls' of {place}")
    elif _is_there(turn, "function_call"):
        calls = _parsed(turn["function_call"], f"'function_call' of {place}")
    else:
        return []
    calls = calls if isinstance(calls, list) else [calls]
    return [_call(call, place) for call in calls]


def _is_there(turn: dict[str, Any], key: str) -> bool:
    """Whether the turn has this key with content."""
    value = turn.get(key)
    return value not in (None, [], {}, "") and value == value  # not NaN, which merging data sets makes of null


def _call(call: Any, place: str) -> dict[str, Any]:
    """One call in the form {"type": "function", "function": {"name": …, "arguments": …}}.

    What OpenAI's form has beside these, an `id` above all, stays where it stands: templates such as Mistral's write it.
    """
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UserError(f"{place} has a call that is no object with a text 'name'")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str) and arguments.lstrip()[:1] == "{":
        arguments = _parsed(arguments, f"'arguments' of {place}")
    made = {"name": function["name"], "arguments": arguments}
    inside = made if function is call else ()
    around = {key: value for key, value in call.items() if value is not None and key not in inside}
    return {**({} if "type" in around else {"type": "function"}), **around, "function": made}


def _parsed(value: Any, place: str) -> Any:
    """The value of a JSON text; any other value as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is a text that is no JSON ({error})") from error
