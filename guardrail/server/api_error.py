"""Requests that a server understands and does not take: what the client is told, and about what."""

from __future__ import annotations

from guardrail.errors import GuardrailError


class ApiError(GuardrailError, Exception):
    """A request that the client can mend; `param` names the field, in the OpenAI error form."""

    def __init__(
        self, message: str, *, status: int = 400, param: str | None = None, code: str | None = None
    ) -> None:
        self.status, self.param, self.code = status, param, code
        super().__init__(message)


def unknown_model(name: str, served: str) -> ApiError:
    """As the OpenAI API says it, with the name that is served."""
    return ApiError(
        f"the model {name[:80]!r} does not exist here; this server has {served!r}",
        status=404,
        param="model",
        code="model_not_found",
    )
