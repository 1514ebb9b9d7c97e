"""The bodies of requests and the form of errors, as pydantic and the OpenAPI description have them.

They say which fields there are and what they hold; `chat` and `responses` say which of them the
guarded model can honour. A key that is no field is kept in `model_extra`, for whoever answers to
refuse. Messages are read by the guard itself, which drops nothing.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Object = dict[str, Any]
# A list of a million wrong items would otherwise be a million errors, for seconds and gigabytes.
Objects = Annotated[list[Object], Field(fail_fast=True)]
Texts = Annotated[list[str], Field(fail_fast=True)]


class ErrorDetail(BaseModel):
    """What went wrong. A flagged request's error has its verdict in `guardrail`."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None
    guardrail: dict[str, Any] | None = Field(default=None, description="the verdict")


class ErrorBody(BaseModel):
    """Any error's body, as the OpenAI API has it."""

    error: ErrorDetail


_TOLD = {
    400: "Malformed JSON, a setting that cannot hold, or flagged under `on_flag = raise`",
    401: "No valid key",
    404: "No such model",
    408: "The body took too long to arrive",
    413: "Larger than allowed",
    415: "Not JSON in UTF-8",
    422: "Content that cannot be read",
    429: "Too many requests; see Retry-After",
    500: "A mistake of the server's",
    502: "The upstream failed",
    503: "Nothing can be judged now; see Retry-After",
    504: "The time was over",
}
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text} for status, text in _TOLD.items()
}


def _answers(kind: str, parts: str) -> dict[int | str, dict[str, Any]]:
    """How the answer to a request is described, as an object of this kind."""
    created = "created_at" if kind == "response" else "created"
    return {
        200: {
            "description": "The answer, or the policy's refusal; the verdict is in `guardrail`.",
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["id", "object", created, "model", parts],
                        "properties": {
                            "object": {"const": kind},
                            parts: {"type": "array", "items": {"type": "object"}},
                            "usage": {"type": "object"},
                            "guardrail": {"type": "object", "description": "the verdict"},
                        },
                    }
                },
                "text/event-stream": {"schema": {"type": "string"}},
            },
        }
    }


ANSWER, RESPONSE = _answers("chat.completion", "choices"), _answers("response", "output")

_INT64 = 2**63
_STOPS, _STOP_CHARS = 4, 1_000


class StreamOptions(BaseModel):
    """What a stream brings beside the words; padding is accepted, and none is sent."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class AskedBody(BaseModel):
    """What a chat and a response are asked for with alike."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, lt=2**31, description="-1 and 0: all tokens")
    repetition_penalty: float | None = Field(default=None, ge=0.1, le=10)
    seed: int | None = Field(default=None, ge=-_INT64, lt=_INT64)
    stop: str | Texts | None = Field(default=None, description="up to 4 texts")
    tools: Objects | None = None
    tool_choice: str | Object | None = Field(
        default=None, description="none | auto | required | a function | allowed_tools"
    )
    parallel_tool_calls: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    moderation: Object | None = None

    # what changes no answer here
    user: str | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_options: Object | None = None
    prompt_cache_retention: Literal["in_memory", "24h", "in-memory"] | None = None

    @field_validator("stop")
    @classmethod
    def _few_words(cls, value: str | list[str] | None) -> str | list[str] | None:
        stops = value if isinstance(value, list) else [] if value is None else [value]
        if len(stops) > _STOPS or not all(0 < len(stop) <= _STOP_CHARS for stop in stops):
            raise ValueError(f"up to {_STOPS} texts of 1 to {_STOP_CHARS} characters")
        return value


class ChatBody(AskedBody):
    """One chat to be answered. Messages are read by the guard itself, which drops nothing."""

    messages: Objects = Field(min_length=1)
    max_tokens: int | None = Field(default=None, gt=0, lt=_INT64)
    max_completion_tokens: int | None = Field(default=None, gt=0, lt=_INT64)
    n: int | None = Field(default=None, ge=1, le=128)
    logprobs: bool | None = None
    response_format: Object | None = Field(
        default=None, description="text | json_schema | json_object"
    )
    metadata: Object | None = None

    # what the guarded model takes at its neutral value only
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = None
    modalities: Texts | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    audio: Object | None = None
    prediction: Object | None = None
    web_search_options: Object | None = None
    functions: Objects | None = None
    function_call: str | Object | None = None

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk of token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ResponseBody(AskedBody):
    """One response to be given. Items are read as a chat's messages, and nothing is dropped."""

    input: str | Objects
    instructions: str | None = None
    max_output_tokens: int | None = Field(default=None, gt=0, lt=_INT64)
    max_tool_calls: int | None = Field(default=None, ge=0, lt=_INT64, description="of hosted tools")
    text: Object | None = Field(
        default=None, description="format: text | json_schema | json_object"
    )
    include: Texts | None = None
    metadata: dict[str, str] | None = None

    # what this server takes at its neutral value only
    previous_response_id: str | None = Field(default=None, description="nothing is stored here")
    conversation: str | Object | None = None
    background: bool | None = None
    truncation: str | None = Field(default=None, description="disabled")
    reasoning: Object | None = None
    prompt: Object | None = None
    context_management: Objects | None = None


class CheckItem(BaseModel):
    """One request to be judged: a prompt or the parts of one in `input`, or a chat in `messages`.

    `tools` are function schemas in the OpenAI form, judged along with it.
    """

    model_config = ConfigDict(strict=True, extra="forbid")

    input: str | Objects | None = Field(default=None, description="a text, or content parts")
    messages: Objects | None = None
    tools: Objects | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.input is None) == (self.messages is None):
            raise ValueError("send either `input` or `messages`")
        return self

    def value(self) -> str | Objects:
        """As `Guard.acheck` reads it."""
        if isinstance(self.input, list):
            return [{"role": "user", "content": self.input}]
        return self.input if self.input is not None else self.messages or []


class ChecksBody(CheckItem):
    """One request to be judged, as in `CheckItem`, or several in `inputs`."""

    model: str | None = Field(default=None, description="the served model; it may be left out")
    inputs: Objects | None = Field(
        default=None, min_length=1, description="objects with `input` or `messages`, and `tools`"
    )

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        given = [self.input, self.messages, self.inputs]
        if sum(value is not None for value in given) != 1:
            raise ValueError("send one of `input`, `messages` and `inputs`")
        if self.inputs is not None and self.tools is not None:
            raise ValueError("with `inputs`, each of them has its own `tools`")
        return self


class Check(BaseModel):
    """What was found in one request."""

    id: str
    object: Literal["check"] = "check"
    created: int
    model: str
    verdict: Object


class CheckedItem(BaseModel):
    """What was found in one of several requests: a verdict, or why there is none.

    `status` is that of an answer to this request alone: 200, or what the error would have had.
    """

    index: int
    object: Literal["check"] = "check"
    status: int
    verdict: Object | None = None
    error: Object | None = None


class CheckList(BaseModel):
    """Answers in the order of `inputs`."""

    id: str
    object: Literal["list"] = "list"
    created: int
    model: str
    data: list[CheckedItem]
