"""Tools in a fine-tuning record: definitions and calls, in the form that chat templates take.

OpenAI's `tools` (and its older `functions`), `tool_calls` (and the older `function_call`) and ShareGPT's turns `function_call`
come to the same. Data sets often hold them as JSON inside a text.
"""

from __future__ import annotations

import json
from typing import Any

from megatron_patch.errors import UserError


def definitions(found: dict[str, Any]) -> list[Any]:
    """The tools of `tools` or `functions`, each as {"type": "function", "function": {…}} or as it stands.

    Raises UserError where they are no list of objects.
    """
    out: list[Any] = []
    for key, value in found.items():
        items = _parsed(value, f"its {key!r}")
        if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
            raise UserError(f"its {key!r} must be a list of objects, or a text that holds one in JSON")
        out += [{"type": "function", "function": item} if key == "functions" else item for item in items]
    return out


def as_calls(turn: dict[str, Any], role: str, content: Any, place: str) -> list[Any]:
    """The calls of an assistant's turn; none in most. `role` as the record spells it.

    Raises UserError where a call is no object with a name, or another's turn has calls.
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
    value = turn.get(key)
    return value not in (None, [], {}, "") and value == value  # NaN is what merging data sets makes of nothing


def _call(call: Any, place: str) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise UserError(f"{place} has a call that is no object with a text 'name'")
    arguments = function.get("arguments", {})
    if isinstance(arguments, str) and arguments.lstrip()[:1] == "{":
        arguments = _parsed(arguments, f"'arguments' of {place}")
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _parsed(value: Any, place: str) -> Any:
    """JSON inside a text; anything else as it is."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is a text that is no JSON ({error})") from error
