"""Which optional extra brings which module; of several the smallest."""

from __future__ import annotations

from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING

from guardrail.errors import MissingExtraError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import ModuleType

EXTRA_OF: Mapping[str, str] = MappingProxyType(
    {
        "accelerate": "offload",
        "agents": "agents",
        "av": "video",
        "fastapi": "serve",
        "gguf": "demo",
        "httpx": "http",
        "langchain": "langchain",
        "langchain_core": "langchain",
        "llama_index": "llamaindex",
        "llguidance": "structured",
        "matplotlib": "report",
        "mcp": "mcp",
        "onnx": "demo",
        "opentelemetry": "otel",
        "prometheus_client": "serve",
        "pyarrow": "bulk",
        "pydantic_ai": "pydantic-ai",
        "python_multipart": "asgi",
        "ray": "ray",
        "rich": "cli",
        "scipy": "fit",
        "sklearn": "fit",
        "starlette": "asgi",
        "structlog": "serve",
        "typer": "cli",
        "uvicorn": "serve",
        "vllm": "vllm",
        "workflows": "llamaindex",
        "yaml": "yaml",
    }
)


def require_extra(name: str) -> None:
    """Say now, not after hours of work, that an extra is missing.

    Raises:
        MissingExtraError: one of the modules that it brings is not installed.
    """
    for module, extra in EXTRA_OF.items():
        if extra == name:
            require(module)


def require(module: str) -> ModuleType:
    """Import an optional module, or say which extra to install.

    Raises:
        MissingExtraError: the module's package is not installed.
        KeyError: no extra brings this module; add it to `EXTRA_OF` and to pyproject.toml.
    """
    package = module.partition(".")[0]
    extra = EXTRA_OF[package]
    try:
        import_module(package)  # first, so that an error names it and not a part of it
        return import_module(module)
    except ModuleNotFoundError as error:
        # An installed package that misses one of its own dependencies is another problem.
        if not f"{module}.".startswith(f"{error.name}."):
            raise
        raise MissingExtraError(module, extra=extra) from error
