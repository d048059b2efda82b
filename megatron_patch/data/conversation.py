"""A fine-tuning record as a conversation, whichever keys it uses. Nothing of it is lost without a word.

Three forms are read:

- Alpaca: `instruction`, `input`, `output` or `content`, with `history` and `system` beside them;
- OpenAI's `messages`, a list of turns with role and content;
- ShareGPT's `conversations`, a list of turns with from and value, with a `system` beside it.

A key whose value is null, NaN, an empty text or an empty list counts as absent: merged data sets have every column in
every record.

A turn is a dict with `role` (system, user, assistant, tool) and `content`, as chat templates take it. An assistant's
turn may have `tool_calls`. It has `weight` 0 if it is not to be learnt. An answer without text is not learnt either
(`teaches`).

Every function raises UserError for a record that it cannot take: one phrase, without file and number.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from megatron_patch.data.tool_turns import as_calls, definitions
from megatron_patch.errors import UserError
from megatron_patch.records.texts import require_unicode

Turn = dict[str, Any]

_LISTS = {"messages": ("role", "content"), "conversations": ("from", "value")}
# ShareGPT's names for who speaks, and the roles of `messages`.
_ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
          "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant", "function_call": "assistant",
          "tool": "tool", "function": "tool", "observation": "tool", "ipython": "tool"}  # fmt: skip
# Keys that say whether a turn is learnt: OpenAI's, axolotl's and ms-swift's.
_WEIGHTS = ("weight", "train", "loss")
_TURN_KEYS = {"role", "from", "content", "value", "tool_calls", "function_call", *_WEIGHTS}
_TOOL_TURN_KEYS = ("name", "tool_call_id")
# role → the roles that it may follow. None stands for the beginning, behind the system message if there is one.
_FOLLOWS = {"user": (None, "assistant"), "assistant": ("user", "tool"), "tool": ("assistant", "tool")}
_TOOLS = ("tools", "functions")
# Keys that describe a record and hold nothing to be learnt. The report names them apart from other unused keys.
METADATA = frozenset({
    "id", "_id", "idx", "index", "uid", "uuid", "guid", "hash", "source", "src", "dataset", "dataset_name", "data_source",
    "origin", "url", "license", "language", "lang", "category", "categories", "task", "task_name", "task_type", "type", "topic",
    "domain", "tags", "tag", "meta", "metadata", "extra", "date", "time", "timestamp", "created_at", "split", "version",
    "author", "model", "score", "rating", "quality", "title",
})  # fmt: skip


def present(record: dict[str, Any], key: str) -> bool:
    """Whether the record has this key with content."""
    return not is_null(record.get(key)) and record[key] != ""


def is_null(value: Any) -> bool:
    """Whether a value is null, or NaN, [] or {}, which merging data sets makes of null."""
    return value is None or value in ([], {}) or value != value


def chat_turns(record: dict[str, Any]) -> list[Turn]:
    """The record's turns: at most one of the system, then user, assistant, user, … Tools' turns follow an assistant's.

    In an Alpaca record the pairs of `history` come first. Then comes a user's turn of `instruction`, a blank line and
    `input`, and the answer.
    """
    key = list_key(record)
    turns = _read_turns(record[key], key) if key else [*history(record), *_last_pair(record)]
    if present(record, "system"):
        turns = _with_system(turns, text(record, "system"))
    _require_order(turns)
    return turns


def list_key(record: dict[str, Any]) -> str | None:
    """The key that holds the list of turns, `messages` or `conversations`; None for an Alpaca record.

    Raises:
        UserError: the record has two forms of a conversation, or an empty list of turns.
    """
    lists = [key for key in _LISTS if present(record, key)]
    others = [key for key in ("instruction", "input", "output", "history") if present(record, key)]
    if len(lists) > 1 or (lists and others):
        names = " and ".join(map(repr, lists + others))
        raise UserError(f"it has {names}, which are two forms of a conversation; leave one of them")
    empty = next((key for key in _LISTS if key in record), None)
    if not lists and empty and is_null(record.get("instruction")):
        raise UserError(f"its {empty!r} must be a list with at least one turn")
    return lists[0] if lists else None


def tools(record: dict[str, Any]) -> list[Any]:
    """The definitions of the tools that the record's assistant may call; most records have none."""
    return definitions({key: record[key] for key in _TOOLS if present(record, key)})


def answer_key(record: dict[str, Any]) -> str:
    """Which key of an Alpaca record holds its answer: `output`, or else `content`."""
    filled = [key for key in ("output", "content") if present(record, key)]
    return (filled or [key for key in ("output", "content") if not is_null(record.get(key))] or ["content"])[0]


def text(record: dict[str, Any], key: str) -> str:
    """The text under a key of the record; empty if the key is absent or null.

    Raises:
        UserError: the value is not a text.
    """
    value = record.get(key)
    if is_null(value):
        return ""
    if not isinstance(value, str):
        raise UserError(f"its {key!r} is {type(value).__name__}, it must be a text")
    return require_unicode(value)


def alpaca_parts(record: dict[str, Any]) -> tuple[str, str, str]:
    """(instruction, input, answer) of an Alpaca record.

    Raises:
        UserError: the instruction or the answer is missing, or one of the three is not a text.
    """
    key = answer_key(record)
    for needed, what in (("instruction", "no 'instruction'"), (key, "neither 'output' nor 'content'")):
        if is_null(record.get(needed)):
            filled = [name for name, value in record.items() if not is_null(value)]
            has = f"; it has {', '.join(map(repr, filled[:8]))}" if filled else ""
            raise UserError(f"it has {what}; a record holds 'instruction', optionally 'input', and 'output' or 'content'{has}")
    return text(record, "instruction"), text(record, "input"), text(record, key)


def history(record: dict[str, Any]) -> list[Turn]:
    """The turns before an Alpaca record's own: `history` as pairs of question and answer, or as a list of turns.

    Raises:
        UserError: `history` is neither.
    """
    if not present(record, "history"):
        return []
    items = record["history"]
    if not isinstance(items, list):
        raise UserError(f"its 'history' is {type(items).__name__}, it must be a list of [question, answer] pairs")
    if all(isinstance(item, dict) for item in items):
        return _read_turns(items, "history")
    turns = []
    for number, pair in enumerate(items, start=1):
        if not isinstance(pair, list) or len(pair) != 2 or not all(isinstance(said, str) for said in pair):
            raise UserError(f"item {number} of 'history' must be a [question, answer] pair of texts")
        turns += [{"role": role, "content": require_unicode(said)} for role, said in zip(("user", "assistant"), pair)]
    return turns


def teaches(turn: Turn) -> bool:
    """Whether an assistant's turn is learnt, and its end token with it.

    It is not if its `weight` is 0. It is not if it is empty or blank and calls no tool: it could only teach to end at
    once.
    """
    return turn.get("weight") != 0 and not is_empty_answer(turn)


def is_empty_answer(turn: Turn) -> bool:
    """Whether an assistant's turn says nothing and calls nothing."""
    return not turn["content"].strip() and not turn.get("tool_calls")


def answers(record: dict[str, Any]) -> list[Turn]:
    """The assistant's turns, but for those of `weight` 0."""
    return [turn for turn in chat_turns(record) if turn["role"] == "assistant" and turn.get("weight") != 0]


def unused_keys(record: dict[str, Any]) -> Iterator[str]:
    """The keys with content that no template reads. A turn's key comes as `messages[].key`."""
    key = list_key(record)
    used = {key} if key else {"instruction", "input", "history", answer_key(record)}
    yield from (name for name in record if name not in used | {"system", *_TOOLS} and present(record, name))
    name = key or "history"
    turns = [turn for turn in record[name] if isinstance(turn, dict)] if present(record, name) else []
    inside = {k for turn in turns for k in turn if k not in _TURN_KEYS and present(turn, k) and not _of_tool_turn(turn, k)}
    yield from (f"{name}[].{k}" for k in sorted(inside))


def _of_tool_turn(turn: dict[str, Any], key: str) -> bool:
    """Whether `key` is one that a tool's turn has, and the turn is a tool's."""
    named = [turn[who] for who in ("role", "from") if isinstance(turn.get(who), str)]
    return key in _TOOL_TURN_KEYS and "tool" in map(_ROLES.get, named)


def _last_pair(record: dict[str, Any]) -> list[Turn]:
    """The user's and the assistant's turn of an Alpaca record."""
    instruction, context, answer = alpaca_parts(record)
    asked = "\n\n".join(part for part in (instruction, context) if part)
    return [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]


def _with_system(turns: list[Turn], system: str) -> list[Turn]:
    """The turns with the record's `system` as the first one, unless it stands there already."""
    if turns[0]["role"] != "system":
        return [{"role": "system", "content": system}, *turns]
    if turns[0]["content"] != system:
        raise UserError("its 'system' and its first turn are two system messages that differ; leave one of them")
    return turns


def _require_order(turns: list[Turn]) -> None:
    """Raise UserError unless each role follows one that it may follow."""
    spoken = turns[1:] if turns[0]["role"] == "system" else turns
    if not spoken:
        raise UserError("it has a system message and nothing after it; a conversation needs a user's turn, or remove it")
    before = None
    for number, turn in enumerate(spoken, start=1 + len(turns) - len(spoken)):
        role = turn["role"]
        if before not in _FOLLOWS.get(role, ()):
            raise UserError(
                f"turn {number} is {role}'s, but the turns must be "
                "user, assistant, user, … after at most one system message; reorder or join them"
            )
        before = role


def _read_turns(turns: Any, field: str) -> list[Turn]:
    """The turns of a list under the key `field`."""
    if not isinstance(turns, list) or not turns:
        raise UserError(f"its {field!r} must be a list with at least one turn")
    return [_read_turn(turn, number, field) for number, turn in enumerate(turns, start=1)]


def _read_turn(turn: Any, number: int, field: str) -> Turn:
    """One turn, whether its keys are ShareGPT's or OpenAI's."""
    place, (who, said) = f"turn {number} of {field!r}", _LISTS.get(field, _LISTS["messages"])
    named = turn if isinstance(turn, dict) else {}
    role = next((named[key] for key in (who, "role", "from") if present(named, key)), None)
    if not isinstance(role, str) or role not in _ROLES:
        raise UserError(f"{place} must be an object with {who!r} (one of {', '.join(_ROLES)}) and a text {said!r}")
    out: Turn = {"role": _ROLES[role]}
    contents = [turn[key] for key in ("content", "value") if not is_null(turn.get(key))]
    if len(contents) == 2 and contents[0] != contents[1]:
        raise UserError(f"{place} has 'content' and 'value', which differ; leave one of them")
    content = contents[0] if contents else None
    calls = as_calls(turn, role, content, place)
    if calls:
        if out["role"] != "assistant":
            raise UserError(f"{place} is {role}'s and calls a tool; only an assistant's turn can")
        out["tool_calls"] = calls
        content = "" if role == "function_call" or content is None else content
    out["content"] = _content(content, place, said)
    out |= {key: turn[key] for key in _TOOL_TURN_KEYS if out["role"] == "tool" and present(turn, key)}
    return out | ({} if _is_learnt(turn, out["role"], place) else {"weight": 0})


def _content(content: Any, place: str, said: str) -> str:
    """A turn's text. OpenAI's list of parts is joined if all of them are texts."""
    if isinstance(content, list) and content and all(isinstance(part, dict) for part in content):
        kinds = {str(part.get("type")) for part in content} - {"text"}
        if kinds:
            raise UserError(f"{place} holds a part of type {', '.join(sorted(kinds))}; only texts can be learnt")
        texts = [part.get("text") for part in content]
        content = "".join(texts) if all(isinstance(part, str) for part in texts) else None
    if not isinstance(content, str):
        raise UserError(f"{place} must have a text {said!r}; it has {type(content).__name__}")
    return require_unicode(content)


def _is_learnt(turn: dict[str, Any], role: str, place: str) -> bool:
    """False if the turn says that it is not to be learnt. Only an assistant's turn can be learnt."""
    weights = {key: turn[key] for key in _WEIGHTS if not is_null(turn.get(key))}
    for key, value in weights.items():
        if not isinstance(value, (bool, int, float)) or value not in (0, 1):
            raise UserError(f"{place} has {key!r} {value!r}; it must be 0 or 1")
        if value == 1 and key != "weight" and role != "assistant":
            raise UserError(f"{place} is {role}'s and has {key!r} {value!r}; only an assistant's turns are learnt")
    return role != "assistant" or all(weights.values())
