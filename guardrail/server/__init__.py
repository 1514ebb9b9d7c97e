"""A guarded model behind HTTP, in the form of the OpenAI API; or a guard before another server.

    from guardrail.server import ServerSettings, create_app

    app = create_app(guard, ServerSettings())

Needs the extra `serve`. `guardrail serve` is the same from the command line.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from guardrail.errors import MissingExtraError

if TYPE_CHECKING:
    from guardrail.server.app import create_app
    from guardrail.server.settings import ServerSettings

__all__ = ["ServerSettings", "create_app"]

_NEEDED = ("fastapi", "httpx", "jinja2", "prometheus_client", "structlog", "uvicorn")


def require_extra() -> None:
    """Import what a server needs.

    Raises:
        MissingExtraError: the extra `serve` is not installed.
    """
    try:
        for name in _NEEDED:
            import_module(name)
    except ModuleNotFoundError as error:
        # An installed package that misses one of its own dependencies is another problem.
        if error.name not in _NEEDED:
            raise
        raise MissingExtraError(error.name, extra="serve") from error


def __getattr__(name: str) -> object:
    """Import a public name's module on first use: the settings alone need no extra."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name == "create_app":
        require_extra()
    home = "app" if name == "create_app" else "settings"
    value: object = getattr(import_module(f"guardrail.server.{home}"), name)
    globals()[name] = value
    return value
