"""Doubles for the tests of applications: a guard without a model, and tiny models built in code.

`FakeGuard` judges by words and loads no tensor library. `tiny_model` and `tiny_artefact` make
a random vision-language model with its real processor, and an artefact for it, without a download;
`scripted` makes such a model say what a test wants. Each name is resolved on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guardrail.testing.fake import FakeGuard
    from guardrail.testing.families import FAMILIES, IMAGE_FAMILIES, VIDEO_FAMILIES, Family, family
    from guardrail.testing.tiny import scripted, tiny_artefact, tiny_model, tiny_processor

__all__ = [
    "FAMILIES",
    "IMAGE_FAMILIES",
    "VIDEO_FAMILIES",
    "FakeGuard",
    "Family",
    "family",
    "scripted",
    "tiny_artefact",
    "tiny_model",
    "tiny_processor",
]

_HOME = {
    "FakeGuard": "guardrail.testing.fake",
    **dict.fromkeys(
        ("scripted", "tiny_artefact", "tiny_model", "tiny_processor"), "guardrail.testing.tiny"
    ),
}


def __getattr__(name: str) -> object:
    """Import a name's module on first use."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME.get(name, "guardrail.testing.families")), name)
