"""A guarded model behind HTTP, in the form of the OpenAI API; or a guard before another server.

    from guardrail.server import ServerSettings, create_app

    app = create_app(guard, ServerSettings())

Needs the extra `serve`. `guardrail serve` is the same from the command line.
"""

from __future__ import annotations

from guardrail.errors import MissingExtraError

_NEEDED = ("fastapi", "httpx", "jinja2", "prometheus_client", "structlog", "uvicorn")
try:
    for _name in _NEEDED:
        __import__(_name)
except ModuleNotFoundError as error:
    # An installed package that misses one of its own dependencies is another problem.
    if error.name not in _NEEDED:
        raise
    raise MissingExtraError(error.name, extra="serve") from error

from guardrail.server.app import create_app  # noqa: E402
from guardrail.server.settings import ServerSettings  # noqa: E402

__all__ = ["ServerSettings", "create_app"]
