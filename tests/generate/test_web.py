"""The web application in this process: what no well-meaning client does, and what happens when the engine fails."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.testclient import TestClient

from megatron_patch.arguments.processes import free_port
from megatron_patch.cli.serve import _listen
from megatron_patch.data.tokenizer import load_tokenizer
from megatron_patch.generate.asking import Asking
from megatron_patch.generate.continuous_batching import Request
from megatron_patch.generate.prompt import prompt_maker
from megatron_patch.generate.sampling import Sampling
from megatron_patch.generate.service import Service
from megatron_patch.generate.web import Application
from megatron_patch.generate.web_body import most_bytes
from megatron_patch.generate.web_guard import Guard
from tests.generate.models import engine_of
from tests.launching import GOLDEN

LONGEST = 240
VOCABULARY = 799  # the last token never comes
OPEN = Guard("", is_local=False)
JSON = {"Content-Type": "application/json"}
DRAWN = Sampling(temperature=1.0, seed=5)


def asked(port, body):
    return urllib.request.Request(f"http://127.0.0.1:{port}/v1/completions", body, JSON)


def asking(template):
    tokenizer = load_tokenizer(GOLDEN / "hf_gqa")
    # So that no answer ends early:
    tokenizer = replace(tokenizer, answer_end=VOCABULARY, eod=VOCABULARY, eos=VOCABULARY)
    return Asking(tokenizer, prompt_maker(template, tokenizer), LONGEST, 16, DRAWN)


def application(service, guard):
    return Application(service, asking("llama2-chat"), asking("none"), "model", LONGEST, 16, guard).app()


@pytest.fixture
def engine():
    return replace(engine_of(GOLDEN / "hf_gqa", 2, LONGEST), vocabulary=VOCABULARY)


@pytest.fixture
def app(engine):
    """The application over an engine in a thread."""
    service = Service(engine, 2)
    thread = threading.Thread(target=service.run)
    thread.start()
    yield application(service, OPEN)
    service.stop()
    thread.join()
    assert service.failure is None


def test_an_answer_without_a_seed_is_another_one_each_time(app):
    with TestClient(app) as client:

        def texts(**more):
            body = {"prompt": ["x", "x"], "max_tokens": 16, **more}
            return [choice["text"] for choice in client.post("/v1/completions", json=body).json()["choices"]]

        assert len({*texts(), *texts()}) == 4
        assert len({*texts(seed=3), *texts(seed=3)}) == 1


@pytest.mark.parametrize(
    "roles", ["user user", "assistant user", "user system user", "system system user", "user assistant assistant user"]
)
def test_turns_that_the_template_would_mistake_are_refused(app, roles):
    turns = [{"role": role, "content": "x"} for role in roles.split()]
    with TestClient(app) as client:
        said = client.post("/v1/chat/completions", json={"messages": turns})
    assert said.status_code == 400 and "take turns" in said.json()["error"]["message"]


@pytest.mark.parametrize(("tokens", "text"), [("▁a ▁ ▁a ▁", "a  a "), ("▁ ▁ ▁a <0x0A>", "  a\n"), ("a ▁a", "a a"), ("▁ ▁", " ")])
def test_a_streamed_turn_is_the_whole_one(app, engine, tokens, text):
    """The one space that SentencePiece puts before a text is in neither, and all other ones are in both."""
    ids = {asking("none").tokenizer.piece(token): token for token in range(VOCABULARY + 1)}
    given, taken = [ids[piece] for piece in tokens.split()], engine._taken
    engine._taken = lambda one, token, told: taken(one, given[one.answered], told)
    ask = {"messages": [{"role": "user", "content": "x"}], "max_tokens": len(given)}
    with TestClient(app) as client:
        whole = client.post("/v1/chat/completions", json=ask).json()["choices"][0]["message"]["content"]
        lines = client.post("/v1/chat/completions", json={**ask, "stream": True}).text.split("\n\n")[:-2]
    pieces = [json.loads(line.removeprefix("data: "))["choices"][0]["delta"].get("content", "") for line in lines]
    assert "".join(pieces) == whole == text


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_without_numbers_is_an_error_of_its_own(app, engine, stream):
    """The request beside it and the next one are answered."""
    engine.decoder.weights.embedding[700] = float("nan")

    def ask(prompt, **more):
        return client.post("/v1/completions", json={"prompt": prompt, "max_tokens": 4, **more})

    with TestClient(app) as client:
        said = ask([[5, 700], [5, 6]], stream=stream)
        error = json.loads(said.text.removeprefix("data: "))["error"]
        assert said.status_code == (200 if stream else 500)
        assert error["type"] == "server_error" and "the model gives NaN" in error["message"]
        assert ask([5, 6]).json()["usage"]["completion_tokens"] == 4


def test_what_no_answer_has_room_for_is_not_read(app):
    """Reading a text of megabytes takes seconds, in which nobody else is answered."""
    with TestClient(app) as client:
        for path, body in (("completions", {"prompt": "x" * 100_000}),
                           ("chat/completions", {"messages": [{"role": "user", "content": "x" * 100_000}]})):  # fmt: skip
            said = client.post(f"/v1/{path}", json=body)
            assert said.status_code == 400 and "the prompt has 100000 characters" in said.json()["error"]["message"]
        said = client.post("/v1/completions", json={"prompt": "x" * most_bytes(LONGEST)})
        assert said.status_code == 413


def test_top_p_of_zero_takes_the_most_probable_token(app):
    """As ever smaller ones do. Of the server's own argument 0 means that all tokens may come."""
    with TestClient(app) as client:

        def text(**more):
            return client.post("/v1/completions", json={"prompt": "x", "max_tokens": 12, **more}).json()["choices"][0]["text"]

        assert text(top_p=0) == text(top_p=1e-9) == text(temperature=0) != text(seed=1)


def test_only_this_machine_s_json_is_answered(engine):
    with TestClient(application(Service(engine, 2), Guard("", is_local=True)), base_url="http://localhost:1") as client:
        assert client.get("/v1/models").status_code == 200
        assert client.get("/v1/models", headers={"Host": "evil.example"}).status_code == 403
        said = client.post("/v1/completions", content="{}", headers={"Content-Type": "text/plain"})
        assert said.status_code == 415 and "curl -H" in said.json()["error"]["message"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_is_answered_no_further(app, engine, stream):
    steps = []
    step = engine.step
    engine.step = lambda: (time.sleep(0.02), steps.append(1), step())[2]
    body = json.dumps({"prompt": "x", "max_tokens": LONGEST - 10, "stream": stream}).encode()
    came = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        if came:
            return came.pop()
        while len(steps) < 3:
            await asyncio.sleep(0.01)
        return {"type": "http.disconnect"}

    async def send(_):
        pass

    scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": "POST",
             "path": "/v1/completions", "raw_path": b"/v1/completions", "query_string": b"",
             "headers": [(b"content-type", b"application/json")],
             "scheme": "http", "server": ("x", 1), "client": ("x", 1), "root_path": ""}  # fmt: skip
    asyncio.run(asyncio.wait_for(app(scope, receive, send), 60))
    while not engine.is_idle:
        time.sleep(0.01)
    assert 3 <= len(steps) < LONGEST // 2


def test_who_asks_after_the_engine_has_failed_is_not_told_to_come_again(engine):
    def fail():
        raise RuntimeError("the GPU is gone")

    engine.step = fail
    service = Service(engine, 2)
    service.submit(Request(0, (1,), 1), lambda _: None)
    service.run()
    with TestClient(application(service, OPEN)) as client:
        said = client.post("/v1/completions", json={"prompt": "x"})
    assert said.status_code == 503 and said.json()["error"]["message"] == "the engine has stopped; its log says why."


def test_a_server_whose_engine_fails_ends(engine):
    """Otherwise it would refuse everybody for ever, and processes that share the weights would wait for it.

    An answer that is under way ends with an error, by which a client tells it from a whole one.
    """
    said = []

    def fail():
        raise RuntimeError("the GPU is gone")

    engine.step = fail
    port = free_port()

    lengths = SimpleNamespace(prompt_length=LONGEST - 16, answer_length=16)
    job = SimpleNamespace(generation=lengths, host="127.0.0.1", port=port, api_key="", name="model", queue=2)

    def ask():
        body = json.dumps({"prompt": "x", "stream": True}).encode()
        for _ in range(300):
            time.sleep(0.1)
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health").close()
                break
        with urllib.request.urlopen(asked(port, body), timeout=20) as answer:
            said.append(json.loads(answer.read().removeprefix(b"data: ")))

    client = threading.Thread(target=ask)
    client.start()
    with pytest.raises(RuntimeError, match="the GPU is gone"):
        _listen(job, engine, asking("none"))
    client.join()
    assert said[0]["error"]["message"] == "the engine has stopped; its log says why."


def test_the_system_looks_after_silent_connections(engine):
    """A client that has gone without a word, behind a router that forgot it, would keep a descriptor for ever."""
    port, timers = free_port(), []
    lengths = SimpleNamespace(prompt_length=LONGEST - 16, answer_length=16)
    job = SimpleNamespace(generation=lengths, host="127.0.0.1", port=port, api_key="", name="model", queue=2)

    def fail():
        raise RuntimeError("enough")

    engine.step = fail

    def look():
        for _ in range(300):
            time.sleep(0.1)
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                time.sleep(0.5)
                lines = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
                timers.extend(line[5][:2] for line in lines if line[1].endswith(f":{port:04X}") and line[3] == "01")
                break
        body = json.dumps({"prompt": "x", "stream": True}).encode()
        with contextlib.suppress(OSError):
            urllib.request.urlopen(asked(port, body), timeout=20).close()

    client = threading.Thread(target=look)
    client.start()
    with pytest.raises(RuntimeError, match="enough"):
        _listen(job, engine, asking("none"))
    client.join()
    assert timers == ["02"], "what /proc/net/tcp calls timer 2 is keepalive's"
