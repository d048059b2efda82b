"""The HTTP application over a `Service`: OpenAI's interface, streamed as server-sent events where a request asks for
it.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from starlette.applications import Starlette
from starlette.requests import ClientDisconnect
from starlette.requests import Request as HttpRequest
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from megatron_patch.errors import UserError
from megatron_patch.generate.asking import Asking
from megatron_patch.generate.continuous_batching import FAILED, NO_NUMBERS
from megatron_patch.generate.openai_bodies import AnswerBody, ChatBody, CompletionBody, error_body, usage
from megatron_patch.generate.openai_logprobs import Logprobs, TokenTexts
from megatron_patch.generate.service import Service
from megatron_patch.generate.web_answers import Answer, Piece, listener
from megatron_patch.generate.web_body import most_bytes, read_body
from megatron_patch.generate.web_guard import Guard, RefusedError

_LEFT = 499  # nginx's status for a client that has gone; nobody reads it


@dataclass
class Application:
    """What the routes share.

    Attributes:
        name: the model's, in the interface.
        longest: tokens of a prompt and its answer together.
        usual_answer: tokens of an answer to a chat request that names no number.
    """

    service: Service
    asking: Asking
    raw: Asking  # for completions, whose prompt is the text as it stands
    name: str
    longest: int
    usual_answer: int
    guard: Guard
    started: int = field(default_factory=lambda: int(time.time()))
    texts: TokenTexts = field(init=False)
    seeds: Iterator[int] = field(default_factory=itertools.count)  # added to --seed for requests that name none

    def __post_init__(self) -> None:
        self.texts = TokenTexts(self.raw.tokenizer)
        self._most_bytes = most_bytes(self.longest)
        tokenizer = self.raw.tokenizer
        self._most_characters = self.longest * max(len(tokenizer.piece(one) or "") for one in range(tokenizer.vocab_size))

    def app(self, lifespan: Callable[[Starlette], Any] | None = None) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/health", self._health),
            Route("/v1/models", self._guarded(self._models)),
            Route("/v1/completions", self._guarded(self._completions), methods=["POST"]),
            Route("/v1/chat/completions", self._guarded(self._chat), methods=["POST"]),
        ]
        return Starlette(routes=routes, lifespan=lifespan)

    def _guarded(self, handler: Callable[[HttpRequest], Any]) -> Callable[[HttpRequest], Any]:
        """`handler` for those who may ask, its refusals as errors of the interface."""

        async def guarded(http: HttpRequest) -> Response:
            try:
                self.guard.check(http.headers)
                return await handler(http)
            except RefusedError as error:
                return JSONResponse(error_body(str(error), error.kind), error.status)
            except UserError as error:
                return JSONResponse(error_body(str(error)), 400)
            except ClientDisconnect:
                return Response(status_code=_LEFT)

        return guarded

    async def _health(self, _: HttpRequest) -> Response:
        failed = self.service.failure
        return JSONResponse({"status": "failed" if failed else "ok"}, 503 if failed else 200)

    async def _models(self, _: HttpRequest) -> Response:
        model = {"id": self.name, "object": "model", "created": self.started, "owned_by": "megatron-patch"}
        return JSONResponse({"object": "list", "data": [{**model, "max_model_len": self.longest}]})

    async def _completions(self, http: HttpRequest) -> Response:
        body = await read_body(http, CompletionBody, self._most_bytes)
        self._check_name(body)
        prompts = body.prompts()
        new_tokens = self.usual_answer if body.max_tokens is None else body.max_tokens
        answers = []
        for number, prompt in enumerate(prompts):
            answers.append(self._ask(body, self._checked_ids(prompt, number), new_tokens, self.raw))
            self._score(answers[-1], body, prompt)
            await asyncio.sleep(0)  # others' pieces go out between prompts, each of which takes a while
        name = f"cmpl-{uuid.uuid4().hex}"
        shape = {"id": name, "object": "text_completion", "created": int(time.time()), "model": self.name}

        def choice(number: int, new: Piece) -> dict[str, Any]:
            logprobs = answers[number].logprobs
            told = None if logprobs is None or not (new.scores or not body.stream) else logprobs.body(new.scores)
            return {"index": number, "text": new.text, "logprobs": told, "finish_reason": new.reason or None}

        return await self._respond(http, body, answers, self.raw, shape, choice, choice)

    async def _chat(self, http: HttpRequest) -> Response:
        body = await read_body(http, ChatBody, self._most_bytes)
        self._check_name(body)
        turns = [message.turn() for message in body.messages]
        self._check_characters(sum(len(turn["content"]) for turn in turns))
        if turns[-1]["role"] != "user":
            raise RefusedError(400, f"the last message is the {turns[-1]['role']}'s; it must be the user's.")
        wanted = body.max_completion_tokens or body.max_tokens
        has_system = turns[0]["role"] == "system"
        asking = replace(self.asking, system="") if has_system else self.asking
        # A prompt that leaves less room than is usual gets what room there is; a number that is named is kept or
        # refused.
        ids, _ = replace(asking, prompt_length=sys.maxsize).ids(turns)
        room = max(1, self.longest - len(ids))
        answers = [self._ask(body, ids, wanted or min(self.usual_answer, room), asking)]
        answers[0].is_spoken = True
        shape = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.name}

        def whole(number: int, new: Piece) -> dict[str, Any]:
            message = {"role": "assistant", "content": new.text}
            return {"index": number, "message": message, "finish_reason": new.reason}

        def piece(number: int, new: Piece) -> dict[str, Any]:
            delta = {} if new.reason else {"content": new.text}
            return {"index": number, "delta": {"role": "assistant", **delta}, "finish_reason": new.reason or None}

        kind = "chat.completion.chunk" if body.stream else "chat.completion"
        return await self._respond(http, body, answers, asking, {**shape, "object": kind}, whole, piece)

    def _check_name(self, body: AnswerBody) -> None:
        if body.model not in ("", self.name):
            raise RefusedError(404, f"there is no model {body.model[:100]!r} here; {self.name!r} is.", "not_found_error")

    def _check_characters(self, count: int) -> None:
        """Refuse a text that cannot fit, which would take seconds to read."""
        if count > self._most_characters:
            most = f"{self.longest} tokens hold at most {self._most_characters}"
            raise RefusedError(400, f"the prompt has {count} characters; {most}.")

    def _checked_ids(self, prompt: str | list[int], number: int) -> list[int]:
        if isinstance(prompt, str):
            self._check_characters(len(prompt))
            return replace(self.raw, prompt_length=sys.maxsize).ids([{"role": "user", "content": prompt}])[0]
        if not prompt or not all(0 <= token < self.asking.tokenizer.vocab_size for token in prompt):
            size = self.asking.tokenizer.vocab_size
            raise RefusedError(400, f"prompt {number} holds no tokens, or ids outside the vocabulary, 0 to {size - 1}.")
        return prompt

    def _ask(self, body: AnswerBody, ids: Sequence[int], new_tokens: int, asking: Asking) -> Answer:
        """The request, checked and not yet in the queue."""
        if len(ids) + new_tokens > self.longest:
            raise RefusedError(
                400,
                f"the prompt has {len(ids)} tokens and {new_tokens} are asked for; together at most {self.longest} are allowed.",
            )
        request = asking.request(0, ids)
        sampling = body.sampling(asking.sampling)
        if body.seed is None:
            sampling = replace(sampling, seed=sampling.seed + next(self.seeds))
        return Answer(replace(request, new_tokens=new_tokens, sampling=sampling))

    def _score(self, answer: Answer, body: CompletionBody, prompt: str | list[int]) -> None:
        """What a completion asks for beside its text: the prompt before it, and log-probabilities."""
        ids = answer.request.prompt
        if body.echo:
            answer.echoed = prompt if isinstance(prompt, str) else self.raw.tokenizer.detokenize(prompt)
        if body.logprobs is not None:
            answer.request = replace(answer.request, logprobs=body.logprobs, scores_prompt=bool(body.echo))
            answer.logprobs = Logprobs(self.texts, self.raw.tokenizer, ids, body.logprobs, bool(body.echo))

    def _submit(self, answers: list[Answer], stop: Sequence[str], asking: Asking) -> None:
        """Put the answers in the queue; all of them or none."""
        loop = asyncio.get_running_loop()
        for answer in answers:
            stream = replace(asking, stop=(*asking.stop, *stop)).stream(answer.request)
            answer.number = self.service.submit(answer.request, listener(loop, answer, stream, self.service))
            if answer.number is None:
                self._cancel(answers)
                self._check_engine()
                raise RefusedError(429, "too many requests wait already; try again later.", "rate_limit_error")

    def _check_engine(self) -> None:
        if self.service.failure is not None:
            raise RefusedError(503, "the engine has stopped; its log says why.", "server_error")

    def _cancel(self, answers: list[Answer]) -> None:
        for answer in answers:
            if answer.number is not None:
                self.service.cancel(answer.number)

    async def _respond(
        self,
        http: HttpRequest,
        body: AnswerBody,
        answers: list[Answer],
        asking: Asking,
        shape: dict[str, Any],
        whole: Callable[[int, Piece], dict[str, Any]],
        piece: Callable[[int, Piece], dict[str, Any]],
    ) -> Response:
        self._submit(answers, body.stop, asking)
        prompt = sum(len(answer.request.prompt) for answer in answers)
        if body.stream:
            counts = body.stream_options is not None and body.stream_options.include_usage
            events = self._events(answers, shape, piece, prompt if counts else None)
            return StreamingResponse(events, media_type="text/event-stream")
        choices = []
        try:
            for number, answer in enumerate(answers):
                all_of_it = Piece("")
                while not all_of_it.reason:
                    new = await self._next(answer, http)
                    all_of_it = Piece(all_of_it.text + new.text, new.reason, all_of_it.scores + new.scores)
                choices.append(whole(number, all_of_it))
        finally:
            self._cancel(answers)
        return JSONResponse({**shape, "choices": choices, "usage": usage(prompt, sum(one.tokens for one in answers))})

    async def _next(self, answer: Answer, http: HttpRequest | None = None) -> Piece:
        """The next piece of an answer.

        Args:
            http: whose client is asked whether it is still there. A streamed response finds out itself.

        Raises:
            ClientDisconnect: it is not.
            RefusedError: there is none, since the engine has stopped or the model gives no numbers for it.
        """
        while True:
            if http is not None and await http.is_disconnected():
                raise ClientDisconnect
            try:
                new = await asyncio.wait_for(answer.pieces.get(), timeout=1)
            except TimeoutError:
                self._check_engine()
                continue
            if new.reason == FAILED:
                raise RefusedError(500, f"this answer ends here: {NO_NUMBERS}", "server_error")
            return new

    async def _events(
        self, answers: list[Answer], shape: dict[str, Any], piece: Callable[..., dict[str, Any]], prompt: int | None
    ) -> AsyncIterator[str]:
        """Server-sent events: the pieces of all answers, the counts where `prompt` is a number, and OpenAI's last
        word; an error where the engine has stopped, since the status is told already.
        """
        try:
            for number, answer in enumerate(answers):
                reason = ""
                while not reason:
                    new = await self._next(answer)
                    reason = new.reason
                    if new.text or new.scores:
                        yield _event({**shape, "choices": [piece(number, replace(new, reason=""))]})
                yield _event({**shape, "choices": [piece(number, Piece("", reason))]})
            if prompt is not None:
                yield _event({**shape, "choices": [], "usage": usage(prompt, sum(one.tokens for one in answers))})
            yield "data: [DONE]\n\n"
        except RefusedError as error:
            yield _event(error_body(str(error), error.kind))
        finally:
            self._cancel(answers)


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
