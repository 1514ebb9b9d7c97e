"""A whole evaluation: a guard and labelled inputs in, a report out."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from guardrail import __version__
from guardrail.audit import plain
from guardrail.errors import ConfigurationError, DatasetError
from guardrail.evaluation import summary
from guardrail.evaluation.cache import Cache
from guardrail.evaluation.controls import controls
from guardrail.evaluation.groups import groups
from guardrail.evaluation.inputs import Troubles, read_inputs
from guardrail.evaluation.judge import PrefixJudge, judge_figures, load_sample
from guardrail.evaluation.keys import plain_policy
from guardrail.evaluation.measuring import Measuring
from guardrail.evaluation.quality import quality
from guardrail.evaluation.schema import Report, Timing
from guardrail.evaluation.stage import Context
from guardrail.policy.acting import enforces

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from guardrail.evaluation.items import EvalItem
    from guardrail.evaluation.judge import Judge, Sample
    from guardrail.evaluation.rows import Row
    from guardrail.evaluation.schema import JudgeFigures, Quality
    from guardrail.fit.collect import Progress
    from guardrail.guard import Guard


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
    """
    _check(guard, items, new_tokens if answers else 1, batch_size)
    sample = load_sample(judge_sample) if answers else None
    chosen = judge or PrefixJudge.also(guard.artefact.header.refusal_prefixes)
    troubles, report = Troubles(skip=skip_errors), progress or (lambda _stage, _done, _total: None)
    with Cache(work_dir) as cache:
        context = Context(cache, guard.policy, troubles, report)
        measuring = Measuring(guard, context, batch_size)
        started = time.perf_counter()
        inputs = read_inputs(items, guard.policy, troubles, report, guard.artefact)
        measuring.timings.append(_timing("reading inputs", started, len(items)))
        rows = measuring.rows(inputs)
        cost, error = None, None
        if sample is not None:
            rows, cost, error = _with_answers(measuring, rows, chosen, sample, new_tokens)
    if not rows:
        raise DatasetError(
            f"none of {len(items)} inputs could be measured; the first: "
            f"{next(iter(troubles.found.values()), 'there was none')}"
        )
    settings = summary.settings_facts(
        guard, answers=answers, new_tokens=new_tokens, batch_size=batch_size
    )
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
    layers = tuple(summary.layer_points(guard.artefact, rows))
    said = summary.warnings(guard, rows, found, troubles)
    facts = {
        "artefact": guard.artefact.summary(),
        "policy": plain_policy(guard.policy),
        "settings": settings,
        "data": summary.data_facts(rows, troubles, content=content),
    }
    return Report(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        guardrail_version=__version__,
        model=guard.loaded.name,
        thresholds=summary.thresholds(guard),
        groups=tuple(found),
        controls=tuple(held_against),
        layers=layers,
        strength=tuple(summary.strength_points(guard.artefact)),
        quality=cost,
        judge=error,
        warnings=tuple(said),
        items=tuple(row.reported(content=content) for row in rows),
        timings=(*measuring.timings, _timing("figures", started, len(rows))),
        **{name: plain(value) for name, value in facts.items()},  # type: ignore[arg-type]
    )


def _timing(stage: str, started: float, n: int) -> Timing:
    return Timing(stage=stage, seconds=time.perf_counter() - started, n=n, cached=0)
