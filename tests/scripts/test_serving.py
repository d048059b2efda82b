"""`megatron-patch serve` through the official openai client, and `megatron-patch chat`."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
import urllib.request

import openai
import pytest
import torch

from megatron_patch.arguments.processes import free_port
from megatron_patch.data.prompts import encode_llama2_chat
from tests.generate.models import random_prompts, transformers_answers
from tests.launching import GOLDEN, environment

FOLDER = GOLDEN / "hf_gqa"
KEY = "a key"


def command(*words):
    return [sys.executable, "-m", "megatron_patch.cli.main", *map(str, words)]


class Server:
    def __init__(self, processes):
        self.port = free_port()
        words = ("serve", FOLDER, "--port", self.port, "--api-key", KEY, "--temperature", 0, "--requests", 3, "--queue", 2)
        layout = ("--tensor-model-parallel-size", processes)
        self.process = subprocess.Popen(command(*words, *layout), env=environment(), stderr=subprocess.PIPE, text=True)
        self.client = openai.OpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=KEY, max_retries=0)
        for _ in range(600):
            time.sleep(0.1)
            assert self.process.poll() is None, self.process.stderr.read()
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health").close()
                return
            except OSError:
                continue
        raise AssertionError("the server did not answer within a minute")


@pytest.fixture(scope="module", params=[1, 2])
def server(request):
    """One process, and two that share the weights. It ends at SIGTERM with status 0, and says nothing of it."""
    server = Server(request.param)
    yield server
    server.process.send_signal(signal.SIGTERM)
    _, said = server.process.communicate(timeout=60)
    assert "Traceback" not in said, said
    if request.param == 1:  # torchrun's own status after a signal is another
        assert server.process.returncode == 0, said


@pytest.fixture
def client(server):
    return server.client


def expected(tokenizer, ids, count):
    (answer,) = transformers_answers(FOLDER, [ids], count)
    answer = answer[: answer.index(tokenizer.eos)] if tokenizer.eos in answer else answer
    return tokenizer.detokenize(ids + answer)[len(tokenizer.detokenize(ids)) :]


def test_completions_are_transformers_s(client, tokenizer):
    prompts = ["def f(x):", "The import statement"]
    ids = [[tokenizer.bos, *tokenizer.tokenize(prompt)] for prompt in prompts]
    wanted = [expected(tokenizer, one, 24) for one in ids]
    assert client.models.list().data[0].id == "hf_gqa"
    made = client.completions.create(model="hf_gqa", prompt=prompts, max_tokens=24)
    assert [choice.text for choice in made.choices] == wanted
    assert made.usage.prompt_tokens == sum(map(len, ids)) and made.usage.completion_tokens <= 48
    by_ids = client.completions.create(model="hf_gqa", prompt=ids[0], max_tokens=24, stop=wanted[0][5:8])
    assert by_ids.choices[0].text == wanted[0].partition(wanted[0][5:8])[0]
    assert by_ids.choices[0].finish_reason == "stop"


def test_a_conversation_comes_in_pieces(client, tokenizer):
    turns = [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "Say more"},
        {"role": "assistant", "content": "more"},
        {"role": "user", "content": "and now"},
    ]
    wanted = expected(tokenizer, encode_llama2_chat(turns, tokenizer)[0], 30).removeprefix(" ")
    stream = client.chat.completions.create(
        model="hf_gqa", messages=turns, max_tokens=30, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == wanted and sum(map(bool, pieces)) > 5
    assert chunks[-1].usage.completion_tokens == 30
    whole = client.chat.completions.create(model="hf_gqa", messages=turns, max_tokens=30)
    assert whole.choices[0].message.content == wanted


def test_answers_at_once_are_those_of_each_alone(client, tokenizer):
    """As many as run and wait, of unequal length and with settings of their own; what comes beyond them is refused."""
    settings = [{"max_tokens": 90 - 12 * n, "temperature": 0.5 * n, "seed": n} for n in range(5)]

    def ask(n, answers):
        answers[n] = client.completions.create(model="hf_gqa", prompt="x " * (n + 1), **settings[n]).choices[0].text

    alone, together = {}, {}
    for n in range(5):
        ask(n, alone)
    threads = [threading.Thread(target=ask, args=(n, together)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == alone
    with pytest.raises(openai.RateLimitError):
        client.completions.create(model="hf_gqa", prompt=["x"] * 6, max_tokens=100)


@pytest.fixture(scope="module")
def model():
    """transformers' own."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()


def logprobs_of(model, ids):
    """ln of the probability of each row of the vocabulary behind each of `ids`, fp32 [S, V]."""
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].log_softmax(-1)


@pytest.mark.parametrize("new", [0, 1, 6])
def test_log_probabilities_are_those_of_transformers(client, tokenizer, model, new):
    """Of several prompts in one request, as lm-evaluation-harness asks for them, with the prompt and without."""
    prompts = [*random_prompts(3, 800, 2, 40, seed=6), [9]]
    ask = {"model": "hf_gqa", "prompt": prompts, "max_tokens": new, "logprobs": 3, "temperature": 0}
    echoed, bare = client.completions.create(**ask, echo=True), client.completions.create(**ask)
    assert echoed.usage.completion_tokens == new * len(prompts)
    for prompt, choice, without in zip(prompts, echoed.choices, bare.choices):
        answer = transformers_answers(FOLDER, [prompt], new)[0] if new else []
        ids, found = prompt + answer, choice.logprobs
        assert choice.text == tokenizer.detokenize(ids) and choice.finish_reason == "length"
        truth = logprobs_of(model, ids)
        wanted = truth[:-1].gather(1, torch.tensor(ids[1:], dtype=torch.int64)[:, None])[:, 0]
        assert found.token_logprobs[0] is None and found.top_logprobs[0] is None and len(found.tokens) == len(ids)
        torch.testing.assert_close(torch.tensor(found.token_logprobs[1:]), wanted, atol=1e-4, rtol=0)
        for token, own, top, row in zip(found.tokens[1:], found.token_logprobs[1:], found.top_logprobs[1:], truth):
            best = row.topk(3).values.tolist()
            assert top[token] == own and 1 <= len(top) <= 4, "the most probable ones, and the one that is there"
            assert max(top.values()) == pytest.approx(best[0], abs=1e-4) and min(top.values()) <= best[2] + 1e-4
        assert without.text == choice.text[len(tokenizer.detokenize(prompt)) :]
        assert without.logprobs.token_logprobs == pytest.approx(found.token_logprobs[len(prompt) :], abs=1e-5)
        assert without.logprobs.text_offset == found.text_offset[len(prompt) :]
        for token, begin in zip(found.tokens, found.text_offset):
            assert token.startswith("bytes:") or choice.text[begin:].startswith(token) or (begin == 0 and token.strip() == token)


def test_log_probabilities_of_a_text_are_streamed_with_it(client, tokenizer, model):
    ask = {"model": "hf_gqa", "prompt": "An answer", "max_tokens": 5, "temperature": 0, "logprobs": 0, "echo": True}
    whole = client.completions.create(**ask).choices[0]
    assert whole.text.startswith("An answer") and whole.logprobs.tokens[0] == "<s>" and whole.logprobs.top_logprobs[0] is None
    pieces = [part.choices[0] for part in client.completions.create(**ask, stream=True)]
    assert "".join(one.text for one in pieces) == whole.text and len(pieces) > 2
    told = [one.logprobs for one in pieces if one.logprobs is not None]
    for name in ("tokens", "token_logprobs", "text_offset"):
        assert [value for one in told for value in getattr(one, name)] == getattr(whole.logprobs, name)
    ids = [tokenizer.bos, *tokenizer.tokenize("An answer")]
    wanted = logprobs_of(model, ids)[:-1].gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(whole.logprobs.token_logprobs[1 : len(ids)]), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"max_tokens": 500}, "together at most 256 are allowed"),
        ({"temperature": -1}, "temperature: "),
        ({"logprobs": 6}, "logprobs: "),
        ({"logprobs": True}, "logprobs: "),
        ({"logit_bias": {"5": 1}}, "logit_bias: "),
        ({"prompt": []}, "prompt"),
        ({"prompt": [5, 800]}, "0 to 799"),
        ({"extra_body": {"guided_json": "x"}}, "guided_json: "),
    ],
    ids=lambda one: next(iter(one)) if isinstance(one, dict) else "",
)
def test_what_cannot_be_answered_is_a_sentence(client, wrong, sentence):
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(**{"model": "hf_gqa", "prompt": "x", **wrong})
    assert sentence in caught.value.body["message"]


def test_without_the_key_nothing_is_said(server):
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"http://127.0.0.1:{server.port}/v1", api_key="other", max_retries=0).models.list()
    with pytest.raises(openai.NotFoundError):
        server.client.completions.create(model="other", prompt="x")


def test_chat_answers_on_the_terminal(tokenizer):
    wanted = expected(tokenizer, encode_llama2_chat([{"role": "user", "content": "Say more"}], tokenizer)[0], 20)
    said = subprocess.run(
        command("chat", FOLDER, "--temperature", 0, "--max-new-tokens", 20),
        env=environment(), input="Say more\n", text=True, capture_output=True,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert said.stdout.endswith(wanted + "\n")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("chat", "/nowhere"), "CHECKPOINT: got '/nowhere'; There is no folder /nowhere"),
        (("serve", FOLDER, "--port", 0), "--port: got '0'"),
        (("serve", FOLDER, "--host", "x y"), "--host: got 'x y'; it takes an address"),
        (("chat", FOLDER, "--length", 5000), "--length: got '5000'; the model is made for 256 positions"),
    ],
)
def test_a_wrong_argument_is_one_sentence(words, sentence):
    said = subprocess.run(command(*words), env=environment(), text=True, capture_output=True)
    assert said.returncode == 2 and sentence in said.stderr, said.stderr
