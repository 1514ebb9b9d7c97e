"""A whole evaluation: a guard and labelled inputs in, a report out."""

from __future__ import annotations

import hashlib
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from guardrail import __version__
from guardrail.artefact.artefact import sampling_notes
from guardrail.audit import plain
from guardrail.errors import ConfigurationError, DatasetError
from guardrail.evaluation.answers import quality
from guardrail.evaluation.cache import Cache
from guardrail.evaluation.figures import (
    DRAWS,
    FOLDS,
    TOLERANCE,
    aurocs_alike,
    controls,
    groups,
    modalities_of,
    sides_of,
)
from guardrail.evaluation.inputs import Troubles, read_inputs
from guardrail.evaluation.judge import PrefixJudge, judge_figures, load_sample
from guardrail.evaluation.measuring import Context, Measuring, plain_policy, timed
from guardrail.evaluation.schema import LayerPoint, Report, StrengthPoint
from guardrail.evaluation.scores import RANDOM_SEEDS
from guardrail.extras import require_extra
from guardrail.fit.collect import VERSIONS
from guardrail.fit.dataset import packaged
from guardrail.model.fingerprint import fingerprint
from guardrail.policy.acting import effective_thresholds, enforces
from guardrail.stats import Share
from guardrail.types import Modality

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from pydantic import JsonValue

    from guardrail.artefact import Artefact
    from guardrail.evaluation.answers import Row
    from guardrail.evaluation.inputs import Input
    from guardrail.evaluation.items import EvalItem
    from guardrail.evaluation.judge import Judge, Sample
    from guardrail.evaluation.schema import Group, JudgeFigures, Quality
    from guardrail.fit.collect import Progress
    from guardrail.guard import Guard

_HIGHEST = ", although the score of a long video is the highest of its windows"
_APART = 0.01  # of the text gap: more than batching and precision explain


def evaluate(
    guard: Guard,
    items: Sequence[EvalItem],
    *,
    judge: Judge | None = None,
    judge_sample: str | Path | None = None,
    new_tokens: int = 16,
    answers: bool = True,
    batch_size: int = 16,
    work_dir: Path | None = None,
    content: bool = True,
    skip_errors: bool = False,
    progress: Progress | None = None,
) -> Report:
    """Measure a guard on labelled inputs, with controls beside its figures.

    The model is run here and by the guard in turn, so nobody else may use the guard meanwhile.

    Args:
        guard: the guard, under the policy that is to be judged.
        items: the inputs, with ids of their own; see `load_items`.
        judge: who says what a refusal is; None: the artefact's and the common refusal prefixes.
        judge_sample: labelled answers that the judge is tested on (JSONL); None: packaged ones.
        new_tokens: length of each answer.
        answers: make answers, plain and guarded; without them there are scores, controls and the
            actions that follow from the thresholds.
        batch_size: inputs in one forward pass; guarded answers take the policy's.
        work_dir: keep there what the model was asked, so that a next run asks only what is new and
            an interrupted one resumes.
        content: keep prompts, picture paths and answers in the report.
        skip_errors: leave out inputs that cannot be measured, and say so, instead of stopping.
        progress: called with a stage's name, what is done of it, and its total.

    Raises:
        DatasetError: an input cannot be measured, two have one id, or there is none.
        ConfigurationError: a setting, the judge or the work folder cannot be used.
        MissingExtraError: the extra `fit` is not installed.
    """
    require_extra("fit")
    _check(guard, items, new_tokens if answers else 1, batch_size)
    sample = load_sample(judge_sample) if answers else None
    chosen = judge or PrefixJudge.also(guard.artefact.header.refusal_prefixes)
    troubles, report = Troubles(skip=skip_errors), progress or (lambda _stage, _done, _total: None)
    with Cache(work_dir) as cache:
        context = Context(cache, guard.policy, troubles, report)
        measuring = Measuring(guard, context, batch_size)
        started = time.perf_counter()
        inputs = read_inputs(items, guard.policy, troubles, report, guard.artefact)
        measuring.timings.append(timed("reading inputs", started, len(items)))
        rows = measuring.rows(inputs)
        cost, error = None, None
        if sample is not None:
            rows, cost, error = _with_answers(measuring, rows, chosen, sample, new_tokens)
    if not rows:
        raise DatasetError(
            f"none of {len(items)} inputs could be measured; the first: "
            f"{next(iter(troubles.found.values()), 'there was none')}"
        )
    settings = _settings_facts(guard, answers=answers, new_tokens=new_tokens, batch_size=batch_size)
    return _report(measuring, rows, cost, error, settings=settings, content=content)


def _check(guard: Guard, items: Sequence[EvalItem], new_tokens: int, batch_size: int) -> None:
    allowed = guard.policy.limits.new_tokens
    if not 1 <= new_tokens <= allowed:
        raise ConfigurationError(
            f"new_tokens must be between 1 and the policy's {allowed}; got {new_tokens}"
        )
    if batch_size < 1:
        raise ConfigurationError(f"batch_size must be at least 1; got {batch_size}")
    if not items:
        raise DatasetError("there are no inputs to measure")
    if len({item.id for item in items}) < len(items):
        raise DatasetError("two inputs have one id; name each input once")


def _with_answers(
    measuring: Measuring, rows: list[Row], judge: Judge, sample: Sample, new_tokens: int
) -> tuple[list[Row], Quality | None, JudgeFigures]:
    """The rows with answers and judgements, what the guard costs, and the judge's own error."""
    # a judge that cannot be used says so before all answers are made
    error = judge_figures(judge, sample, cache=measuring.context.cache)
    rows, cost = measuring.answered(rows, new_tokens), None
    if enforces(measuring.guard.policy):
        divergence = measuring.divergence(rows)
        rows = [row for row in rows if row.id not in measuring.context.troubles.found]
        cost = quality(rows, divergence)
    return measuring.judged(rows, judge), cost, error


def _report(
    measuring: Measuring,
    rows: Sequence[Row],
    cost: Quality | None,
    error: JudgeFigures | None,
    *,
    settings: dict[str, object],
    content: bool,
) -> Report:
    guard, troubles = measuring.guard, measuring.context.troubles
    started = time.perf_counter()
    found, held_against = groups(rows), controls(rows)
    layers = tuple(_layer_points(guard.artefact, rows))
    said = _warnings(guard, rows, found, troubles)
    return Report(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        guardrail_version=__version__,
        model=guard.loaded.name,
        artefact=_facts(guard.artefact.summary()),
        policy=_facts(plain_policy(guard.policy)),
        thresholds=_thresholds(guard),
        settings=_facts(settings),
        data=_facts(_data_facts(rows, troubles, content=content)),
        groups=tuple(found),
        controls=tuple(held_against),
        layers=layers,
        strength=tuple(_strength_points(guard.artefact)),
        quality=cost,
        judge=error,
        warnings=tuple(said),
        items=tuple(row.reported(content=content) for row in rows),
        timings=(*measuring.timings, timed("figures", started, len(rows))),
    )


def _facts(values: Mapping[str, object]) -> dict[str, JsonValue]:
    found: Any = plain(values)
    return dict(found)


def _layer_points(artefact: Artefact, rows: Sequence[Row]) -> Iterator[LayerPoint]:
    """AUROC of every layer's difference of means, in each modality that has both labels.

    Offsets are left out, since most layers have none: inputs are compared with those that have one
    picture, several, or a video, as they do. Of a long video each layer's highest window counts.
    """
    each = {}
    for modality in modalities_of(rows):
        both = sides_of([row for row in rows if row.modality == modality])
        if all(both):
            each[modality] = aurocs_alike(*both, lambda row: row.scores.layers)
    steering = artefact.header.steering
    for layer in range(len(artefact.tensors["direction"])):
        found = {modality: values[layer] for modality, values in each.items()}
        yield LayerPoint(
            layer=layer,
            read=layer in artefact.header.readout.layers,
            edited=steering is not None and layer == steering.layer,
            auroc={name: value for name, value in found.items() if value is not None},
        )


def _strength_points(artefact: Artefact) -> list[StrengthPoint]:
    """The strengths that the fit tried on held-out text; none of an artefact without a record."""
    steering = artefact.header.steering
    trials: Any = steering.figures.get("trials") if steering is not None else None
    if steering is None or not isinstance(trials, list):
        return []
    chosen = (steering.layer, steering.steer_tokens, steering.figures.get("factor"))
    return [
        StrengthPoint(
            layer=trial["layer"],
            tokens=trial["tokens"],
            factor=trial["factor"],
            chosen=(trial["layer"], trial["tokens"], trial["factor"]) == chosen,
            induced=Share(**trial["induced_refusal"]),
            false_refusal=Share(**trial["false_refusal"]),
            kl=trial["kl"],
        )
        for trial in trials
        if trial["kl"] is not None
    ]


def _data_facts(rows: Sequence[Row], troubles: Troubles, *, content: bool) -> dict[str, Any]:
    """How many inputs of what there are, a digest of all that was measured, and what was not.

    Without `content` an error is named by its class: its words may quote the input.
    """
    lines = sorted(f"{row.input.digest} {row.input.item.label}" for row in rows)
    counts: dict[str, dict[str, int]] = {}
    for row in rows:
        item = row.input.item
        of_source = counts.setdefault(item.source, {"harmful": 0, "harmless": 0})
        of_source[item.label] += 1
    return {
        "n": len(rows),
        "digest": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        "sources": counts,
        "distinct": len({row.input.digest for row in rows}),
        "skipped": dict(troubles.found if content else troubles.kinds),
    }


def _settings_facts(
    guard: Guard, *, answers: bool, new_tokens: int, batch_size: int
) -> dict[str, Any]:
    """What a rerun needs to give the same figures."""
    return {
        "answers": answers,
        "new_tokens": new_tokens,
        "sampling": "greedy",
        "batch_size": batch_size,
        "dtype": str(guard.loaded.model.dtype).removeprefix("torch."),
        "device": guard.loaded.device.type,
        "packages": dict(VERSIONS),
        "random_directions": RANDOM_SEEDS,
        "permutations": DRAWS,
        "folds": FOLDS,
        "length_tolerance": TOLERANCE,
    }


def _thresholds(guard: Guard) -> dict[str, dict[str, float]]:
    """The scores beyond which inputs are steered and flagged; for infinity the largest float.

    Only those that act: `steer` is left out where the policy does not allow it or the artefact only
    detects, `flag` where the policy does not allow it.
    """
    largest, policy = sys.float_info.max, guard.policy
    can_steer = guard.artefact.header.steering is not None
    acting = {action.value for action in effective_thresholds(policy, can_steer=can_steer)}

    def finite(value: float) -> float:
        return max(-largest, min(value, largest))

    return {
        modality.value: {
            name: finite(level) for name, level in found.model_dump().items() if name in acting
        }
        for modality, found in guard.thresholds.items()
    }


def _warnings(
    guard: Guard,
    rows: Sequence[Row],
    found: Sequence[Group],
    troubles: Troubles,
) -> Iterator[str]:
    """What a reader must know before believing the figures."""
    differing = guard.artefact.header.fingerprint.differences(fingerprint(guard.loaded))
    if differing:
        yield f"the artefact was fitted on another model ({', '.join(sorted(differing))} differ)"
    if troubles.found:
        named = ", ".join(list(troubles.found)[:5])
        more = ", ..." if len(troubles.found) > 5 else ""
        yield f"inputs left out because of errors: {len(troubles.found)} ({named}{more})"
    yield from _repeats([row.input for row in rows])
    yield from _thin(found)
    modalities = {row.input.modality for row in rows}
    yield from _borrowed(guard, modalities)
    if Modality.VIDEO in modalities:
        yield from sampling_notes(guard.artefact, guard.policy)
    if not enforces(guard.policy):
        yield (
            "shadow mode: guarded answers are the model's own; actions are what would have been "
            "done, and there are no figures of quality"
        )
    # Of a video the guard looks no further once a window is flagged.
    apart = [
        abs(r.score - r.guarded.score)
        for r in rows
        if r.guarded is not None and not (r.modality == Modality.VIDEO and r.guarded.flagged)
    ]
    if apart and max(apart) > _APART:
        yield (
            f"scores of the evaluation and of the guard's own answers differ by up to "
            f"{max(apart):.3f}; batching changes this model's residuals"
        )


def _repeats(inputs: Sequence[Input]) -> Iterator[str]:
    labels: dict[str, set[str]] = {}
    for one in inputs:
        labels.setdefault(one.digest, set()).add(one.item.label)
    if len(labels) < len(inputs):
        yield (
            f"inputs that repeat another one: {len(inputs) - len(labels)}; intervals are narrower "
            "than they should be"
        )
    both = sum(len(each) > 1 for each in labels.values())
    if both:
        yield f"inputs that stand there with both labels: {both}"
    fitted = {prompt.text for prompt in packaged()}
    known = sum(one.item.text in fitted for one in inputs)
    if known:
        yield f"inputs among the packaged contrast prompts, which guards are fitted on: {known}"


def _borrowed(guard: Guard, modalities: set[Modality]) -> Iterator[str]:
    for modality in sorted(modalities - set(guard.policy.thresholds)):
        used, _ = guard.artefact.calibration_for(modality)
        if used != modality:
            yield (
                f"{modality}: the artefact has no calibration for these inputs; they are held to "
                f"the thresholds of {used}{_HIGHEST if modality is Modality.VIDEO else ''}"
            )


def _thin(found: Sequence[Group]) -> Iterator[str]:
    for group in found:
        if group.by != "modality":
            continue
        sides: Mapping[str, int] = {"harmful": group.n_harmful, "harmless": group.n_harmless}
        for label, n in sides.items():
            if n == 0:
                yield f"{group.name}: no {label} inputs, so no separation and no controls"
        if 0 < group.n_harmless < 100:
            yield (
                f"{group.name}: {group.n_harmless} harmless inputs cannot show a false-positive "
                "rate of 1 %; at least 100 are needed"
            )
