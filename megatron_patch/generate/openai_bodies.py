"""Requests and answers of OpenAI's interface, `/v1/completions` and `/v1/chat/completions`, as far as a model alone
can answer.

Names, kinds and ranges are those of OpenAI's reference ("Create completion", "Create chat completion"). A field that
would change an answer and that this server does not have is refused; fields that only describe a request (`user`) are
passed over. A client sends an earlier answer back with all fields that its library knows; those that are null say
nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StrictInt, field_validator, model_validator

from megatron_patch.arguments.trained_model_rows import PENALTIES
from megatron_patch.errors import UserError
from megatron_patch.generate.sampling import Sampling

_MOST_STOPS = 4
MOST_PROMPTS = 64  # of one request
_MOST_MESSAGES = 4096
_MOST_TOP = 5  # tokens that are told beside each one's log-probability

_Item = TypeVar("_Item")
# A list whose first wrong item is the only one that is told. A hostile list has a million.
Listed = Annotated[list[_Item], Field(fail_fast=True)]
Prompts = Annotated[list[_Item], Field(fail_fast=True, min_length=1, max_length=MOST_PROMPTS)]

# What is said of a field that may be of several kinds, in place of what is wrong with it as each of them.
KINDS = {"prompt": f"it must be a text, token ids, or a list of 1 to {MOST_PROMPTS} of either"}


class _Part(BaseModel):
    """An object inside a request. Fields that are null count as absent; others that it does not have are refused."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, value: object) -> object:
        return {key: one for key, one in value.items() if one is not None} if isinstance(value, dict) else value


class StreamOptions(_Part):
    """`stream_options` of a request."""

    include_usage: bool = False
    include_obfuscation: bool = False  # what OpenAI adds against listeners is no part of an answer


class AnswerBody(BaseModel):
    """What both kinds of request have."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    model: str = ""
    temperature: float | None = Field(None, ge=0, le=100)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=0)
    repetition_penalty: float | None = Field(None, ge=PENALTIES.least, le=PENALTIES.most)
    seed: int | None = Field(None, ge=0, lt=1 << 62)
    stop: Listed[str] = Field([], max_length=_MOST_STOPS)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Literal[1] | None = 1
    frequency_penalty: Literal[0] | None = None
    presence_penalty: Literal[0] | None = None
    logit_bias: dict[str, Any] | None = Field(None, max_length=0)
    user: str | None = None

    @field_validator("stop", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        return [] if value is None else [value] if isinstance(value, str) else value

    @field_validator("frequency_penalty", "presence_penalty", mode="before")
    @classmethod
    def _as_whole(cls, value: object) -> object:
        return 0 if value == 0 else value

    def sampling(self, usual: Sampling) -> Sampling:
        """`usual` with what the request says itself."""
        names = ("temperature", "top_p", "top_k", "repetition_penalty", "seed")
        own = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        if self.top_p == 0:
            own["top_k"] = 1  # what comes of ever smaller ones; of an argument, 0 means that all tokens may come
        return Sampling(**{**vars(usual), **own})


class CompletionBody(AnswerBody):
    """`/v1/completions`: a text, or token ids, that the model goes on with."""

    prompt: str | Annotated[Listed[int], Field(min_length=1)] | Prompts[str] | Prompts[Listed[int]]
    max_tokens: int | None = Field(16, ge=0)
    logprobs: StrictInt | None = Field(None, ge=0, le=_MOST_TOP)
    echo: bool | None = None
    suffix: None = None
    best_of: Literal[1] | None = None

    @field_validator("logprobs", mode="before")
    @classmethod
    def _none_for_false(cls, value: object) -> object:
        return None if value is False else value

    def prompts(self) -> list[str | list[int]]:
        """Each prompt, of which every one gets an answer."""
        if isinstance(self.prompt, str) or isinstance(self.prompt[0], int):
            return [self.prompt]
        return list(self.prompt)


class ContentPart(_Part):
    """A part of a message; text is the only kind that a language model reads."""

    type: Literal["text"]
    text: str
    prompt_cache_breakpoint: Any = None  # this and the next say how long to remember the prompt's beginning
    cache_control: Any = None


class Message(_Part):
    """One turn of a conversation.

    `annotations` say which sources an earlier answer named. Its calls of tools are refused: without them the
    conversation would be another one.
    """

    tool_calls: Any = None
    function_call: Any = None
    role: Literal["system", "developer", "user", "assistant"]
    content: Listed[ContentPart]
    name: str | None = None
    annotations: list[Any] = []

    @field_validator("content", mode="before")
    @classmethod
    def _in_parts(cls, value: Any) -> Any:
        if not isinstance(value, (str, list)):
            raise UserError("it must be a text, or a list of parts that are texts")
        return [{"type": "text", "text": value}] if isinstance(value, str) else value

    @field_validator("tool_calls", "function_call")
    @classmethod
    def _no_call(cls, value: Any) -> Any:
        if value:
            raise UserError("this server has no tools; leave out calls of tools, and turns that answer them")
        return value

    def turn(self) -> dict[str, str]:
        """As prompts are made of it. A name reaches the folder's own chat template, which may have a place for it."""
        text = "".join(part.text for part in self.content)
        turn = {"role": "system" if self.role == "developer" else self.role, "content": text}
        return turn if self.name is None else {**turn, "name": self.name}


class ChatBody(AnswerBody):
    """`/v1/chat/completions`: a conversation whose next turn is the model's."""

    messages: Listed[Message] = Field(min_length=1, max_length=_MOST_MESSAGES)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: Literal[False] | None = None
    top_logprobs: None = None
    response_format: dict[str, Any] | None = None

    @field_validator("response_format")
    @classmethod
    def _text_alone(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value not in (None, {"type": "text"}):
            raise UserError('only {"type": "text"} is supported')
        return value


def error_body(message: str, kind: str = "invalid_request_error") -> dict[str, Any]:
    """An error in OpenAI's form, which its clients turn into exceptions."""
    return {"error": {"message": message, "type": kind, "param": None, "code": None}}


def usage(prompt: int, answer: int) -> dict[str, int]:
    """Token counts of a request."""
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
