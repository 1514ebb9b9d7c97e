"""All checks on one model, and what they found: frozen values, written as JSON and read again."""

from __future__ import annotations

from enum import StrEnum
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

from guardrail.conformance.checks import CHECKS
from guardrail.conformance.reference import DoesNotApplyError, WrongResultError, first_line
from guardrail.conformance.subject import Subject, rules
from guardrail.errors import (
    ArtefactError,
    ConfigurationError,
    DetectorError,
    GuardrailError,
    InputError,
    ModelError,
)
from guardrail.model.load import LoadedModel, wrap_model

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from guardrail.conformance.checks import Definition

FORMAT_VERSION = 1
# Errors with which the guard says beforehand that it will not do something.
_REFUSALS = (ModelError, ConfigurationError, InputError, ArtefactError)
_PACKAGES = ("guardrail-vlm", "torch", "transformers")


class Outcome(StrEnum):
    """`no` is the guard's own clear refusal; a wrong result is `FAILED`."""

    YES = "yes"
    NO = "no"
    NOT_APPLICABLE = "n/a"
    FAILED = "FAILED"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Check(_Frozen):
    """One check: what it found, why, and the figures behind it.

    `reason` is there for everything but a `yes`, and for a `yes` that is restricted. `figures` are
    plain values, each named for what it counts or measures. `mode` marks a way of generating, or a
    kind of input, that a guard can do without.
    """

    name: str
    title: str
    outcome: Outcome
    mode: bool = False
    reason: str | None = None
    figures: dict[str, JsonValue] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _reasoned(self) -> Self:
        if self.outcome is not Outcome.YES and not self.reason:
            raise ValueError(f"{self.name}: an outcome of {self.outcome} needs a reason")
        return self


class Report(_Frozen):
    """The checks of one model, in the order in which they were run."""

    format_version: int = Field(default=FORMAT_VERSION, ge=1, le=FORMAT_VERSION)
    architecture: str
    source: str
    layers: int
    d_model: int
    dtype: str
    device: str
    pictures: bool
    packages: dict[str, str]
    checks: tuple[Check, ...]

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks with a wrong result."""
        return tuple(check for check in self.checks if check.outcome is Outcome.FAILED)

    @property
    def ok(self) -> bool:
        """Whether nothing went wrong; a clear refusal is not wrong."""
        return not self.failed

    @property
    def works(self) -> bool:
        """Whether a guard works inside the model: nothing wrong, and a `yes` beyond all modes."""
        core = [check.outcome for check in self.checks if not check.mode]
        return self.ok and all(outcome is Outcome.YES for outcome in core)

    def __getitem__(self, name: str) -> Check:
        """The check of that name; KeyError when it was not run."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)


def check_model(
    model: Any,
    processor: Any = None,
    *,
    names: Collection[str] | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
    checks: Sequence[Definition] = CHECKS,
) -> Report:
    """Run the checks on a model in memory; nobody else may be using it meanwhile.

    Args:
        model: a `LoadedModel`, or a transformers model whose `processor` is given.
        processor: its processor, or the tokenizer of a text-only model.
        names: which of `checks` to run; all by default.
        seed: of the random directions.
        progress: called with "checks", how many are done, and how many there are.
        checks: other ones than `CHECKS`.

    Raises:
        ConfigurationError: a name is unknown.
    """
    known = [definition.name for definition in checks]
    if unknown := sorted(set(names or ()) - set(known)):
        raise ConfigurationError(
            f"there are no checks named {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        )
    chosen = [definition for definition in checks if names is None or definition.name in names]
    loaded = model if isinstance(model, LoadedModel) else wrap_model(model, processor)
    subject: Subject | Exception
    try:
        subject = Subject(loaded, seed=seed)
        # where a guard cannot work at all, one token shows it
        subject.answers(subject.encode(subject.texts[:1]), subject.artefact(), rules(), tokens=1)
    except Exception as error:  # a border: so does every check, and each says why
        subject = error
    found = []
    for number, definition in enumerate(chosen):
        if progress is not None:
            progress("checks", number, len(chosen))
        found.append(_ended(definition, subject))
    if progress is not None:
        progress("checks", len(chosen), len(chosen))
    return Report(
        architecture=type(loaded.model).__name__,
        source=loaded.source,
        layers=loaded.layer_count,
        d_model=loaded.d_model,
        dtype=str(loaded.model.dtype).removeprefix("torch."),
        device=str(loaded.device),
        pictures=loaded.is_multimodal,
        packages={name: version(name) for name in _PACKAGES},
        checks=tuple(found),
    )


def _ended(definition: Definition, subject: Subject | Exception) -> Check:
    """The border where errors become outcomes."""
    outcome, reason, figures = Outcome.YES, None, dict[str, JsonValue]()
    try:
        if isinstance(subject, Exception):
            raise subject
        figures = dict(definition.run(subject))
        note = figures.pop("note", None)
        reason = None if note is None else str(note)
    except DoesNotApplyError as end:
        outcome, reason = Outcome.NOT_APPLICABLE, str(end)
    except WrongResultError as end:
        outcome, reason = Outcome.FAILED, f"{definition.wrong}: {end}"
    except GuardrailError as error:
        refused = isinstance(error, _REFUSALS)
        closed = definition.mode and isinstance(error, DetectorError)
        outcome = Outcome.NO if refused or closed else Outcome.FAILED
        reason = " ".join(str(error).split()) if refused or closed else first_line(error)
    except Exception as error:  # a crash inside the guard is no clear refusal
        outcome, reason = Outcome.FAILED, f"it crashed: {first_line(error)}"
    return Check(
        name=definition.name,
        title=definition.title,
        outcome=outcome,
        mode=definition.mode,
        reason=reason,
        figures=figures,
    )
