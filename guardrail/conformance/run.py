"""All checks on one model, each ended as a yes, a no, a not applicable or a failure."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from guardrail.conformance.answers import probe
from guardrail.conformance.checks import acting, modes, passing, reading, serving, videos
from guardrail.conformance.outcomes import (
    DoesNotApplyError,
    Figures,
    WrongResultError,
    first_line,
)
from guardrail.conformance.report import Check, Outcome, Report
from guardrail.conformance.subject import Subject
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
    from collections.abc import Callable, Collection

    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

    Model = LoadedModel | tuple[PreTrainedModel, ProcessorMixin | PreTrainedTokenizerBase]

# Errors with which the guard says beforehand that it will not do something.
_REFUSALS = (ModelError, ConfigurationError, InputError, ArtefactError)
_PACKAGES = ("guardrail-vlm", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class Definition:
    """A check. A `mode` is one of several ways of asking: the guard may also fail closed there."""

    name: str
    title: str
    run: Callable[[Subject], Figures]
    mode: bool = False


CHECKS = (
    Definition("layers", "decoder layers found", reading.layers),
    Definition("score", "score equals a slow reference", reading.score),
    Definition("unsteered", "unsteered output is the model's own", passing.unsteered),
    Definition("steering", "steering moves only its rows and positions", acting.steering),
    Definition("batch", "a row of a batch equals a lone one", reading.batch),
    Definition("flag", "a flag stops its row", acting.flag),
    Definition("prefill", "one prefill", passing.prefill),
    Definition("early_edit", "edit before the readout", acting.early, mode=True),
    Definition("check", "check leaves early", passing.check_only),
    Definition("static", "static cache", modes.static_cache, mode=True),
    Definition("compiled", "compiled decoding", modes.compiled, mode=True),
    Definition("beams", "beam search", modes.beams, mode=True),
    Definition("sequences", "several answers", modes.sequences, mode=True),
    Definition("assisted", "prompt lookup", modes.assisted, mode=True),
    Definition("chunked", "prefill in chunks", modes.chunked, mode=True),
    Definition("stream", "verdict before the first token", serving.stream),
    Definition("video", "videos", videos.video, mode=True),
    Definition("concurrency", "threads get their own verdicts", serving.concurrency),
)


def check_model(
    model: Any,
    processor: Any = None,
    *,
    names: Collection[str] | None = None,
    seed: int = 0,
    progress: Callable[[str, int, int], None] | None = None,
) -> Report:
    """Run the checks on a model in memory; nobody else may be using it meanwhile.

    Args:
        model: a `LoadedModel`, or a transformers model whose `processor` is given.
        processor: its processor, or the tokenizer of a text-only model.
        names: which of `CHECKS` to run; all by default.
        seed: of the random directions.
        progress: called with "checks", how many are done, and how many there are.

    Raises:
        ConfigurationError: a name is unknown.
    """
    loaded = model if isinstance(model, LoadedModel) else wrap_model(model, processor)
    chosen = _chosen(names)
    subject: Subject | Exception
    try:
        subject = Subject(loaded, seed=seed)
        probe(subject)
    except Exception as error:  # a border: so does every check, and each says why
        subject = error
    checks = []
    for number, definition in enumerate(chosen):
        if progress is not None:
            progress("checks", number, len(chosen))
        checks.append(_ended(definition, subject))
    if progress is not None:
        progress("checks", len(chosen), len(chosen))
    return _report(loaded, tuple(checks))


def _chosen(names: Collection[str] | None) -> tuple[Definition, ...]:
    known = {definition.name for definition in CHECKS}
    unknown = sorted(set(names or ()) - known)
    if unknown:
        raise ConfigurationError(
            f"there are no checks named {', '.join(unknown)}; known: {', '.join(sorted(known))}"
        )
    return tuple(d for d in CHECKS if names is None or d.name in names)


def _ended(definition: Definition, subject: Subject | Exception) -> Check:
    """The border where errors become outcomes."""
    outcome, reason, figures = Outcome.YES, None, Figures()
    try:
        if isinstance(subject, Exception):
            raise subject
        figures = dict(definition.run(subject))
        note = figures.pop("note", None)
        reason = None if note is None else str(note)
    except DoesNotApplyError as end:
        outcome, reason = Outcome.NOT_APPLICABLE, str(end)
    except WrongResultError as end:
        outcome, reason = Outcome.FAILED, str(end)
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


def _report(loaded: LoadedModel, checks: tuple[Check, ...]) -> Report:
    return Report(
        architecture=type(loaded.model).__name__,
        source=loaded.source,
        layers=loaded.layer_count,
        d_model=loaded.d_model,
        dtype=str(loaded.model.dtype).removeprefix("torch."),
        device=str(loaded.device),
        pictures=loaded.is_multimodal,
        packages={name: version(name) for name in _PACKAGES},
        checks=checks,
    )
