"""The body of `POST /v1/chat/completions`, in the OpenAI form.

It says which fields there are and what they hold; `chat_options` says which of them the guarded
model can honour. A key that is no field is kept in `model_extra`, for whoever answers to refuse.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from guardrail.server.json_values import Object, Objects, Texts

_INT64 = 2**63
_STOPS, _STOP_CHARS = 4, 1_000


class StreamOptions(BaseModel):
    """What a stream brings beside the words; padding is accepted, and none is sent."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class ChatBody(BaseModel):
    """One chat to be answered. Messages are read by the guard itself, which drops nothing."""

    model_config = ConfigDict(strict=True, extra="allow")

    model: str
    messages: Objects = Field(min_length=1)

    # how it is answered
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, gt=0, lt=_INT64)
    max_completion_tokens: int | None = Field(default=None, gt=0, lt=_INT64)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, lt=2**31, description="-1 and 0: all tokens")
    repetition_penalty: float | None = Field(default=None, ge=0.1, le=10)
    seed: int | None = Field(default=None, ge=-_INT64, lt=_INT64)
    stop: str | Texts | None = Field(default=None, description="up to 4 texts")
    tools: Objects | None = None
    tool_choice: str | Object | None = Field(default=None, description="none | auto")
    parallel_tool_calls: bool | None = None

    # what the guarded model takes at its neutral value only
    n: int | None = Field(default=None, ge=1, le=128)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=20)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = None
    response_format: Object | None = None
    modalities: Texts | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    audio: Object | None = None
    prediction: Object | None = None
    moderation: Object | None = None
    web_search_options: Object | None = None
    functions: Objects | None = None
    function_call: str | Object | None = None

    # what changes no answer here
    user: str | None = None
    metadata: Object | None = None
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

    @property
    def wants_usage(self) -> bool:
        """Whether a stream ends with a chunk of token counts."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)
