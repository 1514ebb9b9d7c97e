"""The guard inside vLLM: read in the pass that generation needs, judged before a token leaves."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from guardrail.vllm.options import engine_options

if TYPE_CHECKING:
    from guardrail.vllm.guard import VllmGuard
    from guardrail.vllm.host import VllmModel

__all__ = ["VllmGuard", "VllmModel", "engine_options"]
_HOME = {"VllmGuard": "guard", "VllmModel": "host"}


def __getattr__(name: str) -> object:
    """Find what loads torch on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
