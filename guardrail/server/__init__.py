"""A guarded model behind HTTP, in the form of the OpenAI API; or a guard before another server.

    from guardrail.server import ServerSettings, create_app

    app = create_app(guard, ServerSettings())

Needs the extra `serve`, but for the settings. `guardrail serve` is the same from the command line.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from guardrail.errors import MissingExtraError

if TYPE_CHECKING:
    from guardrail.server.app import create_app
    from guardrail.server.settings import ServerSettings

__all__ = ["ServerSettings", "create_app"]

_HOME = {"ServerSettings": "settings", "create_app": "app"}
_NEEDED = ("fastapi", "httpx", "prometheus_client", "structlog", "uvicorn")


def __getattr__(name: str) -> object:
    """Find a public name on first use, so that to read settings loads no web framework."""
    if name == "ServerSettings" or name.startswith("__"):
        return _found(name)
    _require_extra()  # for modules too: `from guardrail.server import logs` asks here first
    return _found(name)


def _found(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def _require_extra() -> None:
    try:
        for name in _NEEDED:
            import_module(name)
    except ModuleNotFoundError as error:
        # An installed package that misses one of its own dependencies is another problem.
        if error.name not in _NEEDED:
            raise
        raise MissingExtraError(error.name, extra="serve") from error
