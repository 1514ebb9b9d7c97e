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

from guardrail.extras import require

require("python_multipart")
require("starlette")

from guardrail.asgi.middleware import GuardrailASGIMiddleware
from guardrail.asgi.routes import GuardedRoute

__all__ = ["GuardedRoute", "GuardrailASGIMiddleware"]
