"""What LiteLLM's generic guardrail API sends and reads."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from guardrail.server.json_values import Object, Objects, Texts


class LiteLLMBody(BaseModel):
    """One call that passes through a LiteLLM proxy, before (`request`) or after the model.

    `texts` and `images` are what LiteLLM found in the call; `structured_messages` is the chat that
    they are from, where it is one. What else LiteLLM says about a call (keys, headers, parameters
    for a guardrail) is not read, so nobody can weaken the policy by it.
    """

    model_config = ConfigDict(strict=True, extra="ignore")

    input_type: Literal["request", "response"]
    texts: Texts | None = None
    images: Texts | None = Field(default=None, description="data URLs or base64")
    structured_messages: Objects | None = None
    tools: Objects | None = None
    tool_calls: Objects | None = None


class LiteLLMAnswer(BaseModel):
    """What LiteLLM is to do; `guardrail` is the verdict, for people who read its logs."""

    action: Literal["NONE", "BLOCKED", "GUARDRAIL_INTERVENED"]
    blocked_reason: str | None = None
    texts: Texts | None = Field(default=None, description="in the place of those that came")
    images: Texts | None = None
    guardrail: Object | None = None
