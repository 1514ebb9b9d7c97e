"""Every error this package raises on purpose.

GuardrailError
├── ConfigurationError (ValueError)     a setting that cannot hold
├── MissingExtraError (ImportError)     an optional part is not installed; names the extra
├── InputError (ValueError)             a request that cannot be scored
│   ├── UnsupportedContentError         a part, role or type nobody here understands
│   ├── LimitExceededError              larger than the policy allows
│   ├── ImageDecodeError                bytes that are no readable image
│   ├── VideoDecodeError                bytes or frames that are no readable video
│   └── UrlNotAllowedError              a remote address whose host is not allowed
├── ModelError
│   ├── ModelLoadError                  weights or processor could not be loaded
│   └── UnsupportedModelError           loaded, but the guard cannot work inside it
├── ArtefactError
│   ├── ArtefactFormatError             truncated, edited or of a future version
│   └── ArtefactMismatchError           fitted on another checkpoint
├── FitError
│   ├── DatasetError                    contrast data that cannot be used
│   ├── NoUsableDirectionError          the model shows no refusal direction
│   └── CalibrationError                too little data for the target
├── DetectorError                       the detector itself failed; never a finding
├── GuardrailViolation                  a flagged request, when the policy says `raise`; see below
├── QueueFullError                      more requests are waiting than the policy allows
├── RequestTimeoutError (TimeoutError)
├── RequestCancelledError
├── ClusterError                        replicas could not do what was asked
├── UpstreamClosedError (ConnectionError)  the server behind a proxy ended
└── GuardClosedError                    the guard was closed

All but `GuardrailViolation` are an `Exception`, too. A violation is a decision and no failure: what
catches `Exception` in order to try something else (a fallback, a retry) would have another model
answer what was just refused. Python's own cancellation is none for the same reason. Catch it by its
name, or with the rest of the family by `GuardrailError`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from guardrail.types import Verdict


class GuardrailError(BaseException):
    """Base of every error this package raises on purpose; see above which are an `Exception`."""


class ConfigurationError(GuardrailError, ValueError):
    """A setting that cannot hold; the message names it."""


class MissingExtraError(GuardrailError, ImportError):
    """An optional dependency is missing; the message gives the command that installs it."""

    def __init__(self, module: str, *, extra: str) -> None:
        self.module, self.extra = module, extra
        super().__init__(
            f"{module!r} is not installed; it comes with the extra {extra!r}: "
            f"pip install 'guardrail-vlm[{extra}]'"
        )


class InputError(GuardrailError, ValueError):
    """A request that cannot be scored as it is."""


class UnsupportedContentError(InputError):
    """A content part, role or type that the guard does not understand."""


class LimitExceededError(InputError):
    """An input larger than the policy allows; `limit`, `allowed` and `found` are attributes."""

    def __init__(self, *, limit: str, allowed: float, found: float, what: str = "input") -> None:
        self.limit, self.allowed, self.found = limit, allowed, found
        super().__init__(
            f"{what} has {limit} {found}, the policy allows {allowed}; "
            f"send less or raise `limits.{limit}` in the policy"
        )


class ImageDecodeError(InputError):
    """Bytes that are no readable image."""


class VideoDecodeError(InputError):
    """Bytes or frames that are no readable video."""


class UrlNotAllowedError(InputError):
    """A remote address whose host the policy does not allow."""


class ModelError(GuardrailError, Exception):
    """Something about the guarded model."""


class ModelLoadError(ModelError):
    """Weights, configuration or processor could not be loaded."""


class UnsupportedModelError(ModelError):
    """The model loaded, but a guard cannot work inside it."""


class ArtefactError(GuardrailError, Exception):
    """Something about a fitted artefact."""


class ArtefactFormatError(ArtefactError):
    """The file is truncated, was edited, or has a version this release cannot read."""


class ArtefactMismatchError(ArtefactError):
    """The artefact was fitted on another checkpoint; `fields` maps names to (fitted, running).

    The message names the fields. Digests, which tell a reader nothing, stand in the traceback.
    """

    def __init__(self, fields: dict[str, tuple[str, str]]) -> None:
        self.fields = dict(fields)
        told = {name: f"{name}: fitted on {a}, running {b}" for name, (a, b) in fields.items()}
        for name in told:
            if name.endswith("_digest"):
                self.add_note(told[name])
                told[name] = name
        shown = "; ".join(told.values())
        template = " (the chat template is part of it)" if "tokenizer_digest" in fields else ""
        super().__init__(
            f"the artefact was fitted on another model ({shown}){template}; `guardrail drift` says "
            "whether it still holds and repairs it, `guardrail fit` makes a new one; pass "
            "allow_mismatch=True (--allow-mismatch) only if you know the directions still hold"
        )


class FitError(GuardrailError, Exception):
    """Fitting did not end in an artefact."""


class DatasetError(FitError):
    """Contrast data that cannot be used; the message names the line."""


class NoUsableDirectionError(FitError):
    """No layer separates unsafe from safe prompts well enough; the message gives the figures."""


class CalibrationError(FitError):
    """Too few inputs for the rate that was asked for."""


class DetectorError(GuardrailError, Exception):
    """The detector itself failed: an outage, never a finding."""


class GuardrailViolation(GuardrailError):  # the public name users catch
    """A flagged request under `on_flag = "raise"`; `verdict` says why.

    No `Exception`, so that no fallback or retry answers the request in the guard's place.
    """

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        super().__init__(verdict.summary())


class QueueFullError(GuardrailError, Exception):
    """More requests are waiting than `limits.queue`, or than a client's share of it, allows.

    `retry_after_s`, from 1 to 60, is when those that wait now should be answered, in s.
    `whose` is "all" where nobody is let in, "client" where only this client has too many waiting.
    """

    def __init__(
        self, *args: object, retry_after_s: float = 1.0, whose: Literal["all", "client"] = "all"
    ) -> None:
        self.retry_after_s, self.whose = retry_after_s, whose
        super().__init__(*args)


class RequestTimeoutError(GuardrailError, TimeoutError):
    """The request's time was over before its answer was."""


class RequestCancelledError(GuardrailError, Exception):
    """The caller gave the request up."""


class ClusterError(GuardrailError, Exception):
    """Replicas could not do what was asked; the message says what became of it."""


class UpstreamClosedError(GuardrailError, ConnectionError):
    """The server that a proxy stands in front of ended, or its connection was lost."""


class GuardClosedError(GuardrailError, Exception):
    """The guard was closed and takes no more requests."""
