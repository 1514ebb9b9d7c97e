"""Bodies and answers of `POST /v1/checks`."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from guardrail.server.json_values import Object, Objects


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


class ChecksBody(BaseModel):
    """One request to be judged, as in `CheckItem`, or several in `inputs`."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: str | None = Field(default=None, description="the served model; it may be left out")
    input: str | Objects | None = None
    messages: Objects | None = None
    tools: Objects | None = None
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

    def alone(self) -> CheckItem:
        """The one request of a body without `inputs`."""
        return CheckItem(input=self.input, messages=self.messages, tools=self.tools)


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
