"""Requests as OpenAI's library makes them: an earlier answer is sent back as it came, and nothing of it is lost."""

from __future__ import annotations

import pytest
from openai.types.chat import ChatCompletionMessage
from pydantic import ValidationError

from megatron_patch.generate.openai_bodies import ChatBody

ASKED = {"role": "user", "content": "time?"}
CALL = {"id": "1", "type": "function", "function": {"name": "clock", "arguments": "{}"}}


def turns(*messages, **more):
    return [message.turn() for message in ChatBody.model_validate({"messages": messages, **more}).messages]


def answer(**more):
    """What a client has of an earlier answer."""
    return ChatCompletionMessage(role="assistant", **more).model_dump()


def test_an_earlier_answer_is_taken_as_openai_s_library_has_it():
    plain = [ASKED, {"role": "assistant", "content": "noon"}, ASKED]
    message = answer(content="noon")
    assert {"refusal", "annotations", "audio", "function_call", "tool_calls"} <= set(message), "with fields that say nothing"
    source = {"type": "url_citation", "url_citation": {"start_index": 0, "end_index": 4, "title": "a", "url": "b"}}
    for said in (message, answer(content="noon", tool_calls=[]), answer(content="noon", annotations=[source])):
        assert turns(ASKED, said, ASKED) == plain
    cached = {"type": "text", "text": "noon", "cache_control": {"type": "ephemeral"}}
    assert turns(ASKED, {"role": "assistant", "content": [cached]}, ASKED) == plain
    options = {"include_usage": True, "include_obfuscation": False}
    assert ChatBody.model_validate({"messages": plain, "stream_options": options}).stream_options.include_usage
    assert turns({**ASKED, "name": "Ann"}) == [{**ASKED, "name": "Ann"}], "which a chat template may write"


@pytest.mark.parametrize(
    ("message", "place"),
    [
        (answer(content="", tool_calls=[CALL]), "tool_calls"),
        (answer(content=None, tool_calls=[CALL]), "tool_calls"),
        (answer(content="", function_call=CALL["function"]), "function_call"),
        (answer(content=None, refusal="no"), "content"),
        (answer(content="", refusal="no"), "refusal"),
        ({"role": "assistant", "content": "", "reasoning_content": "noon"}, "reasoning_content"),
        ({"role": "assistant", "content": [{"type": "text", "text": "a", "image_url": "b"}]}, "image_url"),
        (answer(content=None), "content"),
    ],
)
def test_what_would_change_the_answer_is_refused(message, place):
    with pytest.raises(ValidationError) as refused:
        turns(ASKED, message, ASKED)
    first = refused.value.errors()[0]
    assert place in first["loc"]
    if "call" in place:
        assert "this server has no tools; leave out calls of tools" in first["msg"]


def test_an_option_of_a_stream_that_is_not_there_is_refused():
    with pytest.raises(ValidationError, match="continuous_usage_stats"):
        turns(ASKED, stream_options={"continuous_usage_stats": True})
