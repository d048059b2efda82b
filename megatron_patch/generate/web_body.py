"""A request's body, read within bounds: a hostile one costs no more than its bytes."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from megatron_patch.generate.openai_bodies import KINDS, MOST_PROMPTS
from megatron_patch.generate.web_guard import RefusedError, check_is_json

_TOKEN_BYTES = 8  # of an id in JSON, with a comma and a blank
_OTHER_BYTES = 64 << 10  # for all else than prompts
_MOST_BYTES = 4 << 20
_MOST_BRACKETS = 100_000
_MOST_FAULTS = 100  # of which the first is told
_SHOWN = 100  # characters of a key that is told

Body = TypeVar("Body", bound=BaseModel)


def most_bytes(longest: int) -> int:
    """The bound of a body. It fits as many prompts as a request may have, of `longest` tokens each, as ids."""
    return min(_MOST_BYTES, _OTHER_BYTES + MOST_PROMPTS * _TOKEN_BYTES * longest)


async def read_body(http: Request, kind: type[Body], most: int) -> Body:
    """The body of a request, of at most `most` bytes.

    Raises:
        RefusedError: it is no such body.
    """
    check_is_json(http.headers)
    content = bytearray()
    async for part in http.stream():
        content += part
        if len(content) > most:
            raise RefusedError(413, f"the request is larger than {most >> 10} KiB.")
    return checked(bytes(content), kind)


def checked(content: bytes, kind: type[Body]) -> Body:
    """`content` as `kind`. What is wrong first is told.

    A body of brackets alone would take a hundred times its size, as Python's lists, for pydantic's errors hold what is
    wrong. pydantic looks no further into a list with a wrong item, but finds each unknown key of an object; of very
    many it is only counted how many there are.

    Raises:
        RefusedError: it is not.
    """
    brackets = content.count(b"[") + content.count(b"{")
    if brackets > _MOST_BRACKETS:
        raise RefusedError(400, f"the body has {brackets} brackets; at most {_MOST_BRACKETS} are allowed, also in texts.")
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        if (count := error.error_count()) > _MOST_FAULTS:
            raise RefusedError(400, f"the body has {count} unknown keys or wrong values.") from None
        first = error.errors(include_url=False, include_input=False)[0]
        field = str(first["loc"][0]) if first["loc"] else ""
        if field in KINDS:
            raise RefusedError(400, f"{field}: {KINDS[field]}.") from None
        place = ".".join(map(str, first["loc"]))[:_SHOWN] or "the body"
        raise RefusedError(400, f"{place}: {first['msg']}.") from None
