"""A guard inside the prefill of a local vision-language model.

    from guardrail import Guard, Policy

    guard = Guard.from_pretrained("path-or-hub-id", artefact="model.guard.safetensors")
    result = guard.generate("What is the capital of France?")

Every public name is resolved on first use. Importing them, `Guard` and `load_model` among them,
loads no tensor library; loading a model does.
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guardrail.artefact import Artefact
    from guardrail.errors import (
        ArtefactError,
        ArtefactFormatError,
        ArtefactMismatchError,
        CalibrationError,
        ClusterError,
        ConfigurationError,
        DatasetError,
        DetectorError,
        FitError,
        GuardClosedError,
        GuardrailError,
        GuardrailViolation,
        ImageDecodeError,
        InputError,
        LimitExceededError,
        MissingExtraError,
        ModelError,
        ModelLoadError,
        NoUsableDirectionError,
        QueueFullError,
        RequestCancelledError,
        RequestTimeoutError,
        UnsupportedContentError,
        UnsupportedModelError,
        UpstreamClosedError,
        UrlNotAllowedError,
        VideoDecodeError,
    )
    from guardrail.front.tools import guard_tool
    from guardrail.front.wrap import guarded
    from guardrail.guard import Guard
    from guardrail.inputs.canonical import canonical_chat
    from guardrail.model.load import load_model
    from guardrail.monitor import Monitor, MonitorSnapshot
    from guardrail.policy import Limits, Policy, Thresholds, VideoSampling
    from guardrail.types import Action, Modality, Request, Result, ToolCall, Verdict

__all__ = [
    "Action",
    "Artefact",
    "ArtefactError",
    "ArtefactFormatError",
    "ArtefactMismatchError",
    "CalibrationError",
    "ClusterError",
    "ConfigurationError",
    "DatasetError",
    "DetectorError",
    "FitError",
    "Guard",
    "GuardClosedError",
    "GuardrailError",
    "GuardrailViolation",
    "ImageDecodeError",
    "InputError",
    "LimitExceededError",
    "Limits",
    "MissingExtraError",
    "Modality",
    "ModelError",
    "ModelLoadError",
    "Monitor",
    "MonitorSnapshot",
    "NoUsableDirectionError",
    "Policy",
    "QueueFullError",
    "Request",
    "RequestCancelledError",
    "RequestTimeoutError",
    "Result",
    "Thresholds",
    "ToolCall",
    "UnsupportedContentError",
    "UnsupportedModelError",
    "UpstreamClosedError",
    "UrlNotAllowedError",
    "Verdict",
    "VideoDecodeError",
    "VideoSampling",
    "__version__",
    "canonical_chat",
    "guard_tool",
    "guarded",
    "load_model",
]

try:
    __version__ = metadata.version("guardrail-vlm")
except metadata.PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"

_HOME = {
    "Artefact": "guardrail.artefact",
    "Guard": "guardrail.guard",
    "canonical_chat": "guardrail.inputs.canonical",
    "guard_tool": "guardrail.front.tools",
    "guarded": "guardrail.front.wrap",
    "load_model": "guardrail.model.load",
    **dict.fromkeys(("Monitor", "MonitorSnapshot"), "guardrail.monitor"),
    **dict.fromkeys(("Limits", "Policy", "Thresholds", "VideoSampling"), "guardrail.policy"),
    **dict.fromkeys(
        ("Action", "Modality", "Request", "Result", "ToolCall", "Verdict"), "guardrail.types"
    ),
}


def __getattr__(name: str) -> object:
    """Import a public name's module on first use and remember the name."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_HOME.get(name, "guardrail.errors")), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Every public name, resolved or not."""
    return sorted({*globals(), *__all__})
