"""Guard chosen routes of an ASGI app that exists already: Starlette, FastAPI or any other.

    from guardrail.asgi import GuardedRoute, GuardrailASGIMiddleware

    app.add_middleware(
        GuardrailASGIMiddleware,
        guard=guard,
        routes=["/v1/chat/completions", GuardedRoute("/describe", fields=("prompt", "image"))],
    )

Needs the extra `asgi`.
"""

from __future__ import annotations

from guardrail.errors import MissingExtraError

try:
    import python_multipart as python_multipart
    import starlette as starlette
except ModuleNotFoundError as error:
    # An installed package that misses one of its own dependencies is another problem.
    if error.name not in ("python_multipart", "starlette"):
        raise
    raise MissingExtraError(error.name, extra="asgi") from error

from guardrail.asgi.middleware import GuardrailASGIMiddleware
from guardrail.asgi.routes import GuardedRoute

__all__ = ["GuardedRoute", "GuardrailASGIMiddleware"]
