"""Bodies that nobody means well with: none takes more than its size warrants, and each is told what is wrong."""

from __future__ import annotations

import tracemalloc

import pytest
from pydantic import ValidationError

from megatron_patch.generate.openai_bodies import ChatBody, CompletionBody
from megatron_patch.generate.web_body import checked, most_bytes
from megatron_patch.generate.web_guard import RefusedError

MOST = most_bytes(4096)


def full(begin, item, end, size=MOST):
    """A body of about `size` bytes, of one item again and again."""
    return f"{begin}{','.join([item] * ((size - len(begin) - len(end)) // (len(item) + 1)))}{end}".encode()


def many_keys(begin, end):
    return (begin + ",".join(f'"{number:x}":1' for number in range(MOST // 10)) + end).encode()


LISTS = {
    "prompt of objects": (CompletionBody, '{"prompt":[', "{}", "]}"),
    "prompt of null": (CompletionBody, '{"prompt":[', "null", "]}"),
    "prompts of objects": (CompletionBody, '{"prompt":[[', "{}", "]]}"),
    "too many texts": (CompletionBody, '{"prompt":[', '""', "]}"),
    "too many lists": (CompletionBody, '{"prompt":[', "[]", "]}"),
    "stop": (CompletionBody, '{"prompt":"x","stop":[', "{}", "]}"),
    "messages": (ChatBody, '{"messages":[', "{}", "]}"),
    "parts": (ChatBody, '{"messages":[{"role":"user","content":[', "{}", "]}]}"),
    "too many messages": (ChatBody, '{"messages":[', '{"role":"user","content":""}', "]}"),
}
OTHERS = {
    "keys": (ChatBody, many_keys("{", "}")),
    "keys of a message": (ChatBody, many_keys('{"messages":[{"role":1,', "}]}")),
    "depth": (ChatBody, b"[" * MOST),
    "less depth": (ChatBody, b'{"messages":' * 50_000),
    "digits": (CompletionBody, b'{"prompt":[' + b"1" * MOST + b"]}"),
    "no text": (CompletionBody, b"\xff" * MOST),
    "one long key": (CompletionBody, b'{"prompt":"","' + b"a" * MOST + b'":1}'),
}
WHOLE = {name: (kind, full(*parts)) for name, (kind, *parts) in LISTS.items()} | OTHERS


@pytest.mark.parametrize("name", LISTS)
def test_a_list_of_wrong_items_is_a_few_errors(name):
    """One for each kind that the field may be of."""
    kind, *parts = LISTS[name]
    with pytest.raises(ValidationError) as caught:
        kind.model_validate_json(full(*parts, size=200_000))
    assert caught.value.error_count() <= 4


@pytest.mark.parametrize("name", WHOLE)
def test_a_hostile_body_takes_little(name):
    kind, body = WHOLE[name]
    tracemalloc.start()
    try:
        with pytest.raises(RefusedError) as caught:
            checked(body, kind)
        assert tracemalloc.get_traced_memory()[1] < 32 * len(body)
    finally:
        tracemalloc.stop()
    assert caught.value.status == 400 and len(str(caught.value)) < 300


@pytest.mark.parametrize("prompt", ['"x"', "[5,6]", '["5","x"]', "[[5],[6,7]]", "[" + ",".join(["[1]"] * 64) + "]"])
def test_each_kind_of_prompt_stays_what_it_is(prompt):
    body = checked(b'{"prompt":%s}' % prompt.encode(), CompletionBody)
    assert body.model_dump_json(include={"prompt"}) == f'{{"prompt":{prompt}}}'


def test_no_prompt_is_refused():
    with pytest.raises(RefusedError, match="prompt: it must be a text, token ids, or a list of 1 to 64 of either"):
        checked(b'{"prompt":[]}', CompletionBody)


def test_as_many_ids_as_a_request_may_have_fit():
    prompts = ", ".join(["[" + ", ".join(["31999"] * 4096) + "]"] * 64)
    body = f'{{"prompt": [{prompts}]}}'.encode()
    assert len(body) <= MOST and len(checked(body, CompletionBody).prompts()) == 64
