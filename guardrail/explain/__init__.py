"""Which words of a request, or which part of its pictures and videos, gave it its score.

    from guardrail.explain import explain

    found = explain(guard, "What is the capital of France?")

Figures and pages of what was found are in `guardrail.explain.page` (extra `report`).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guardrail.explain.explanation import Explanation
    from guardrail.explain.run import explain

__all__ = ["Explanation", "explain"]

_HOME = {"Explanation": "guardrail.explain.explanation", "explain": "guardrail.explain.run"}


def __getattr__(name: str) -> object:
    """Import a public name's module on first use."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
