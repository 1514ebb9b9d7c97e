"""Where to edit, how far and for how long: decided on what users send, behind the gate they get.

First, at which layers does the direction cause refusals? Measured on safe prompts, at the first
token of the answer. Then strength and positions are calibrated together, on requests in several
forms: what makes a model refuse a bare text does little to the same text in a picture. The gate
carries the selectivity, so harmless requests count as they are hit: those the gate opens for, of
all there are.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guardrail.decide.detector import Steering
from guardrail.decide.linear import UNMOVED
from guardrail.fit.collect import LAST_DEPTH
from guardrail.fit.effects import (
    CausalEffect,
    answers,
    causal_effects,
    garbled,
    kl_divergence,
    refusal_token_ids,
    refusals,
)
from guardrail.fit.prompts import drawn_unsafe, spread
from guardrail.fit.recentring import lines
from guardrail.fit.select import FIRST_DEPTH, is_safe, is_unsafe
from guardrail.stats import Rate
from guardrail.types import Modality

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from guardrail.artefact.header import Calibration
    from guardrail.fit.collect import Collector
    from guardrail.fit.directions import Directions
    from guardrail.fit.effects import Answer
    from guardrail.fit.joint import JointReadout
    from guardrail.fit.readings import Readings
    from guardrail.fit.recentring import Beside
    from guardrail.policy import Thresholds
    from guardrail.types import Request

FIRST = 1.0  # of the upper end of unsafe text
STRONGER, WEAKER = (1.4, 2.0, 2.8, 4.0), (0.7, 0.5, 0.35)
TOKENS, FEWER = 8, (0,)  # generated tokens that are edited, too
RAMP = 0.05  # score above the gate at which the move is whole: nearly a step, but continuous
KL_BOUND = 0.1  # nats over all benign prompts, behind the gate (Arditi et al. 2024, appendix C)
FALSE_BOUND = 0.02  # of all benign prompts: refused behind the gate that were answered before
GARBLED_BOUND = 0.1  # of steered answers: neither a refusal nor what the model would ever say
ENOUGH = 0.95  # induced refusal beyond which a stronger edit only costs
CAUSAL_PROMPTS = 12
STEERED = {"plain": 4, "worded": 8, "pictured": 3, "drawn": 5}
"""How many unsafe prompts of each group the strength is chosen on; pictures cost most."""
MOST_BENIGN = 16  # that the gate opens for; more are sampled
CANDIDATE_LAYERS, STEERING_LAYERS = 6, 2


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting and what it did. Counts of benign prompts include those the gate leaves alone."""

    steering: Steering
    factor: float
    unsteered: Rate
    induced: Rate
    false_refusal: Rate
    kl: float
    garbled: Rate
    induced_by: dict[str, Rate] = field(default_factory=dict)

    @property
    def within_bounds(self) -> bool:
        """Whether safe prompts stay as they were, and steered answers are answers."""
        return (
            self.kl <= KL_BOUND
            and self.false_refusal.value <= FALSE_BOUND
            and self.garbled.value <= GARBLED_BOUND
        )

    @property
    def effective(self) -> bool:
        """Whether more unsafe prompts are refused than without the edit."""
        return self.induced.hits > self.unsteered.hits

    def to_dict(self) -> dict[str, object]:
        """Plain values for the artefact's header."""
        return {
            "layer": self.steering.layer,
            "factor": self.factor,
            "region_max": self.steering.region_max,
            "tokens": self.steering.tokens,
            "unsteered_refusal": self.unsteered.to_dict(),
            "induced_refusal": self.induced.to_dict(),
            "induced_by_group": {name: rate.to_dict() for name, rate in self.induced_by.items()},
            "false_refusal": self.false_refusal.to_dict(),
            "garbled": self.garbled.to_dict(),
            "kl": self.kl,
        }


@dataclass(frozen=True)
class SteeringFound:
    """Causal effects by layer, all trials (best first) and the chosen one, if any is usable."""

    effects: dict[int, CausalEffect]
    trials: list[Trial]

    @property
    def chosen(self) -> Trial | None:
        """The best trial, when it keeps its bounds and induces any refusal that was not there."""
        best = self.trials[0] if self.trials else None
        return best if best and best.within_bounds and best.effective else None


def search(
    collect: Collector,
    readings: Readings,
    joint: JointReadout,
    calibrated: Mapping[Modality, Calibration],
    prefixes: Sequence[str],
) -> SteeringFound:
    """Find a steering layer, a strength and positions.

    Layers between the first ones and the last quarter are tried. An edit before the deepest layer
    that is read makes a steered request run the layers between twice (see
    `guardrail.model.rerun`); one behind it costs nothing, but may come too late. Of layers at which
    the direction does not raise the refusal log-odds of safe prompts, nothing is tried further;
    without any other, the artefact will only detect.
    """
    layers = len(readings.layers)
    first, last = int(FIRST_DEPTH * layers), int(LAST_DEPTH * layers)
    places = spread([i for i in readings.usable if first <= i < last], CANDIDATE_LAYERS)
    return _tried(collect, readings, joint, calibrated, prefixes, places)


def _tried(
    collect: Collector,
    readings: Readings,
    joint: JointReadout,
    calibrated: Mapping[Modality, Calibration],
    prefixes: Sequence[str],
    places: list[int],
) -> SteeringFound:
    """The causal effect at each of these layers, and trials at the best of them."""
    if not places:
        return SteeringFound({}, [])
    unsafe = readings.forms["plain"].rows("fit", is_unsafe)
    starts = {i: steering_at(readings.directions, i, unsafe, readings.beside) for i in places}
    measured = measured_effects(collect, readings, list(starts.values()), prefixes)
    effects = dict(zip(starts, measured, strict=True))
    causal = sorted(
        (i for i in places if effects[i].log_odds_shift > 0),
        key=lambda i: -effects[i].log_odds_shift,
    )
    if not causal:
        return SteeringFound(effects, [])
    data = _gated(readings, joint, calibrated)
    best = [starts[i] for i in causal[:STEERING_LAYERS]]
    return SteeringFound(effects, calibrate_steering(collect, data, best, prefixes))


def measured_effects(
    collect: Collector, readings: Readings, edits: Sequence[Steering], prefixes: Sequence[str]
) -> list[CausalEffect]:
    """What edits without a gate do to the fit's safe prompts, always the same ones of a set."""
    token_ids = refusal_token_ids(
        lambda words: collect.loaded.tokenizer.encode(words, add_special_tokens=False), prefixes
    )
    return causal_effects(collect, causal_prompts(readings), edits, token_ids)


def causal_prompts(readings: Readings) -> list[Request]:
    """The safe prompts on which edits are measured, at most `CAUSAL_PROMPTS`."""
    plain = readings.forms["plain"]
    ordinary = plain.samples_of("select", lambda kind: kind == "ordinary")
    ordinary = ordinary or plain.samples_of("select", is_safe)  # a user's set may have none
    return [sample.request for sample in spread(ordinary, CAUSAL_PROMPTS)]


def _gated(
    readings: Readings, joint: JointReadout, calibrated: Mapping[Modality, Calibration]
) -> SteeringData:
    """Requests as users send them, and the benign ones that the gate opens for.

    Unsafe prompts are those of the selection split, in every group; drawn ones are made here.
    """
    opened, total = [], 0
    for form in readings.forms.values():
        held = form.of("calibrate", is_safe)
        total += len(held.samples)
        scores = joint.scores(held).tolist() if held.samples else []
        for sample, score in zip(held.samples, scores, strict=True):
            gate = _gate(calibrated, sample.request.modality)
            if gate.steer < score <= gate.flag:
                opened.append(sample.request)
    unsafe = {
        name: [s.request for s in spread(form.samples_of("select", is_unsafe), STEERED[name])]
        for name, form in readings.forms.items()
        if name in STEERED
    }
    if "drawn" in readings.forms:
        unsafe["drawn"] = [
            sample.request for sample in drawn_unsafe(readings.contrast, "select", STEERED["drawn"])
        ]
    some = spread(opened, MOST_BENIGN)
    stand_for = round(total * len(some) / len(opened)) if opened else total
    return SteeringData({n: rows for n, rows in unsafe.items() if rows}, some, stand_for)


def _gate(calibrated: Mapping[Modality, Calibration], modality: Modality) -> Thresholds:
    """The thresholds of a modality; those of texts where it has none of its own."""
    return calibrated.get(modality, calibrated[Modality.TEXT]).thresholds


@dataclass(frozen=True)
class SteeringData:
    """Unsafe requests by group, benign ones the gate opens for, and of how many benign ones."""

    unsafe: Mapping[str, Sequence[Request]]
    benign: Sequence[Request]
    benign_total: int

    def answered(self, collect: Collector, steering: Steering | None) -> _Answered:
        """What is said to all; asked together, as small batches take as long to decode."""
        said = iter(answers(collect, [*self.benign, *chain(*self.unsafe.values())], steering))
        benign = list(islice(said, len(self.benign)))
        return _Answered(benign, {k: list(islice(said, len(v))) for k, v in self.unsafe.items()})


@dataclass(frozen=True)
class _Answered:
    """What was said to the benign requests, and to the unsafe ones of each group."""

    benign: list[Answer]
    unsafe: dict[str, list[Answer]]

    def refused(self, prefixes: Sequence[str]) -> dict[str, Rate]:
        """How many of the unsafe ones are refused."""
        return {name: Rate.of(refusals(said, prefixes)) for name, said in self.unsafe.items()}


def calibrate_steering(
    collect: Collector, data: SteeringData, starts: Sequence[Steering], prefixes: Sequence[str]
) -> list[Trial]:
    """Try every layer at one strength, the best of them at others, then with fewer tokens.

    Stronger ones as long as bounds are kept and not (nearly) everything unsafe is refused; weaker
    ones while a bound is broken. Sorted by: within bounds, induced refusal, then low KL.
    """
    before = data.answered(collect, None)
    total = len(starts) + len(STRONGER) + len(FEWER)
    trials: list[Trial] = []

    def attempt(start: Steering, factor: float, tokens: int = TOKENS) -> Trial:
        trial = _try(collect, data, _edit(start, factor, tokens), factor, before, prefixes)
        trials.append(trial)
        collect.progress("steering strength", len(trials), total)
        return trial

    def start_of(trial: Trial) -> Steering:
        return next(start for start in starts if start.layer == trial.steering.layer)

    for start in starts:
        attempt(start, FIRST)
    last = min(trials, key=preference)
    begin, too_strong = start_of(last), not last.within_bounds
    for factor in WEAKER if too_strong else STRONGER:
        if last.within_bounds is too_strong or (not too_strong and last.induced.value >= ENOUGH):
            break
        last = attempt(begin, factor)
    best = min(trials, key=preference)
    for tokens in FEWER:
        attempt(start_of(best), best.factor, tokens)
    collect.progress("steering strength", total, total)
    return sorted(trials, key=preference)


def preference(trial: Trial) -> tuple[bool, float, float]:
    """What trials are sorted by: within bounds, induced refusal, then low KL."""
    return not trial.within_bounds, -trial.induced.value, trial.kl


def _edit(start: Steering, factor: float, tokens: int) -> Steering:
    reach = start.region_max * factor
    return replace(start, gain=reach / RAMP, a_max=reach, region_max=reach, tokens=tokens)


def _try(
    collect: Collector,
    data: SteeringData,
    steering: Steering,
    factor: float,
    before: _Answered,
    prefixes: Sequence[str],
) -> Trial:
    kl, newly = 0.0, 0
    now = data.answered(collect, steering)
    if data.benign:
        kl = float(kl_divergence(_first(before.benign), _first(now.benign)).sum())
        refused = (refusals(one.benign, prefixes) for one in (now, before))
        newly = sum(a and not b for a, b in zip(*refused, strict=True))
    induced = now.refused(prefixes)
    return Trial(
        steering=steering,
        factor=factor,
        unsteered=_together(before.refused(prefixes).values()),
        induced=_together(induced.values()),
        induced_by=induced,
        false_refusal=Rate(newly, data.benign_total),
        kl=kl / data.benign_total,
        garbled=garbled(collect, [*now.benign, *chain(*now.unsafe.values())], prefixes),
    )


def _first(said: Sequence[Answer]) -> Tensor:
    """Logits of the first tokens, (n, vocab)."""
    return torch.stack([one.logits for one in said])


def _together(rates: Iterable[Rate]) -> Rate:
    found = list(rates)
    return Rate(sum(rate.hits for rate in found), sum(rate.n for rate in found))


def steering_at(
    directions: Directions,
    layer: int,
    unsafe: Tensor,
    beside: Mapping[str, Beside],
    *,
    factor: float = 1.0,
    tokens: int = 0,
) -> Steering:
    """The edit at one layer that moves a row to `factor` times the upper end of unsafe text.

    Args:
        directions: of the fit split.
        layer: where the edit is added, after the layer.
        unsafe: (n, L, d_model) residuals; the 95th percentile of their scores is the upper end of
            what text covers.
        beside: requests alone and beside pictures, whose effect is taken back before the region is
            looked at.
        factor: how far beyond it the trust region reaches.
        tokens: generated tokens edited beside the last prompt position.
    """
    unit, gap = directions.direction[layer].double(), float(directions.norms[layer])
    zero = float(directions.mu_safe[layer].double() @ unit)

    def local(residuals: Tensor) -> Tensor:
        return (residuals[:, layer].double() @ unit - zero) / gap

    upper = float(local(unsafe).quantile(0.95))
    reach = max(upper * factor, 1e-6)
    return Steering(
        layer=layer,
        direction=directions.direction[layer],
        zero=zero,
        gap=gap,
        recentring={"text": UNMOVED, **lines(beside, local)},
        gain=reach / RAMP,
        a_max=reach,
        region_max=reach,
        tokens=tokens,
    )
