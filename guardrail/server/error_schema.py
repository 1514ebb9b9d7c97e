"""The form of errors, for the OpenAPI description."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field


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
