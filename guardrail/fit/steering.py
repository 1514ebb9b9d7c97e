"""Where to edit, how far and for how long: decided on text.

First, at which layers does the direction cause refusals? Measured on safe prompts, at the first
token of the answer. Then strength and positions are calibrated together, behind the gate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guardrail.decide.detector import Decision, Steering
from guardrail.fit.prompts import spread
from guardrail.fit.refusal import is_refusal
from guardrail.fit.select import FIRST_DEPTH, LAST_DEPTH, is_safe, is_unsafe
from guardrail.model.generate import generate_rows, next_token_logits
from guardrail.model.settings import Settings
from guardrail.stats import Rate
from guardrail.types import Action, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from guardrail.artefact.header import Calibration
    from guardrail.fit.collect import Collector
    from guardrail.fit.directions import Directions
    from guardrail.fit.readings import Readings
    from guardrail.fit.select import LinearReadout

OPEN = 1e6  # a detection score above any gate
FACTORS = (1.0, 1.25, 1.5, 2.0, 2.5)
WEAKER = (0.75, 0.5)  # when even the first factor breaks a bound
TOKENS = (0, 8)
RAMP = 0.05  # score above the gate at which the move is whole: nearly a step, but continuous
KL_BOUND = 0.1  # nats on safe prompts, behind the gate (Arditi et al. 2024, appendix C)
ENOUGH = 0.95  # induced refusal beyond which a stronger edit only costs
ANSWER = Settings(max_new_tokens=8, do_sample=False)
CAUSAL_PROMPTS, STEERED_PROMPTS = 12, 20
CANDIDATE_LAYERS, STEERING_LAYERS = 4, 2


@dataclass(frozen=True)
class CausalEffect:
    """What an edit does to next-token distributions: mean shift of refusal log-odds, and KL."""

    log_odds_shift: float
    kl: float


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting and what it did. Counts of benign prompts include those the gate leaves alone."""

    steering: Steering
    factor: float
    unsteered: Rate
    induced: Rate
    false_refusal: Rate
    kl: float

    @property
    def within_bounds(self) -> bool:
        """Whether safe prompts stay as they were, on average."""
        return self.kl <= KL_BOUND

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
            "false_refusal": self.false_refusal.to_dict(),
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
    readout: LinearReadout,
    text: Calibration,
    prefixes: Sequence[str],
) -> SteeringFound:
    """Find a steering layer, a strength and positions, all on text.

    Layers from the readout's deepest to the last fifth come first: an edit there costs nothing.
    Only when none of them is usable, layers before it are tried, but for the first ones; a steered
    request then runs the layers between twice (see `guardrail.model.rerun`). Of layers at which the
    direction does not raise the refusal log-odds of safe prompts, nothing is tried further; without
    any other, the artefact will only detect.
    """
    layers, deepest = len(readings.layers), readout.layers[-1]
    first, last = int(FIRST_DEPTH * layers), int(LAST_DEPTH * layers)

    def tried(start: int, end: int) -> SteeringFound:
        places = spread([i for i in readings.usable if start <= i < end], CANDIDATE_LAYERS)
        return _tried(collect, readings, readout, text, prefixes, places)

    found = tried(deepest, last)
    if found.chosen is not None:
        return found
    earlier = tried(first, min(last, deepest))
    trials = sorted([*earlier.trials, *found.trials], key=preference)
    return SteeringFound(found.effects | earlier.effects, trials)


def _tried(
    collect: Collector,
    readings: Readings,
    readout: LinearReadout,
    text: Calibration,
    prefixes: Sequence[str],
    places: list[int],
) -> SteeringFound:
    """The causal effect at each of these layers, and trials at the best of them."""
    if not places:
        return SteeringFound({}, [])
    unsafe = readings.forms["plain"].rows("fit", is_unsafe)
    starts = {i: steering_at(readings.directions, i, unsafe) for i in places}
    measured = measured_effects(collect, readings, list(starts.values()), prefixes)
    effects = dict(zip(starts, measured, strict=True))
    causal = sorted(
        (i for i in places if effects[i].log_odds_shift > 0),
        key=lambda i: -effects[i].log_odds_shift,
    )
    if not causal:
        return SteeringFound(effects, [])
    data = _gated(readings, readout, text)
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


def _gated(readings: Readings, readout: LinearReadout, text: Calibration) -> SteeringData:
    """Held-out prompts for which the gate opens, and how many benign ones there were in all.

    Unsafe prompts come with words around them: that is how they arrive with a picture, and fewer of
    them are refused anyway.
    """
    plain, carried = readings.forms["plain"], readings.forms["carried"]
    benign = plain.samples_of("calibrate", is_safe)
    scores = readout.scores(plain.rows("calibrate", is_safe)).tolist()
    gate = text.thresholds
    opened = [
        sample.request
        for sample, score in zip(benign, scores, strict=True)
        if gate.steer < score <= gate.flag
    ]
    asked = spread(carried.samples_of("select", is_unsafe), STEERED_PROMPTS)
    return SteeringData([sample.request for sample in asked], opened, len(benign))


@dataclass(frozen=True)
class SteeringData:
    """Unsafe requests, the benign ones the gate opens for, and how many benign ones there are."""

    unsafe: Sequence[Request]
    benign: Sequence[Request]
    benign_total: int


@dataclass(frozen=True)
class _Unsteered:
    """The same requests without an edit: first-token logits of benign ones, and who is refused."""

    logits: Tensor
    benign: list[bool]
    unsafe: list[bool]


def calibrate_steering(
    collect: Collector, data: SteeringData, starts: Sequence[Steering], prefixes: Sequence[str]
) -> list[Trial]:
    """Try every layer and position at the least strength, then the best of them at more.

    A setting that breaks a bound, or after which (nearly) everything unsafe is refused, ends the
    search; if the least strength breaks one already, weaker ones are tried until one keeps them.
    Sorted by: within bounds, induced refusal, then low KL.
    """
    before = _Unsteered(
        logits=logits_of(collect, data.benign) if data.benign else torch.zeros(0, 1),
        benign=refused(collect, data.benign, None, prefixes),
        unsafe=refused(collect, data.unsafe, None, prefixes),
    )
    total = len(starts) * len(TOKENS) + len(FACTORS) - 1
    trials: list[Trial] = []

    def attempt(start: Steering, factor: float, tokens: int) -> Trial:
        trial = _try(collect, data, _stronger(start, factor, tokens), factor, before, prefixes)
        trials.append(trial)
        collect.progress("steering strength", len(trials), total)
        return trial

    for start, tokens in product(starts, TOKENS):
        attempt(start, FACTORS[0], tokens)
    last = min(trials, key=preference)
    begin = next(start for start in starts if start.layer == last.steering.layer)
    too_strong = not last.within_bounds
    for factor in WEAKER if too_strong else FACTORS[1:]:
        if last.within_bounds is too_strong or (not too_strong and last.induced.value >= ENOUGH):
            break
        last = attempt(begin, factor, last.steering.tokens)
    collect.progress("steering strength", total, total)
    return sorted(trials, key=preference)


def preference(trial: Trial) -> tuple[bool, float, float]:
    """What trials are sorted by: within bounds, induced refusal, then low KL."""
    return not trial.within_bounds, -trial.induced.value, trial.kl


def _stronger(start: Steering, factor: float, tokens: int) -> Steering:
    reach = start.region_max * factor
    return replace(start, gain=reach / RAMP, a_max=reach, region_max=reach, tokens=tokens)


def _try(
    collect: Collector,
    data: SteeringData,
    steering: Steering,
    factor: float,
    before: _Unsteered,
    prefixes: Sequence[str],
) -> Trial:
    kl, newly = 0.0, 0
    if data.benign:
        edited = logits_of(collect, data.benign, Unconditional(steering))
        kl = float(kl_divergence(before.logits, edited).sum()) / data.benign_total
        now = refused(collect, data.benign, steering, prefixes)
        newly = sum(a and not b for a, b in zip(now, before.benign, strict=True))
    return Trial(
        steering=steering,
        factor=factor,
        unsteered=Rate.of(before.unsafe),
        induced=Rate.of(refused(collect, data.unsafe, steering, prefixes)),
        false_refusal=Rate(newly, data.benign_total),
        kl=kl,
    )


def steering_at(
    directions: Directions, layer: int, unsafe: Tensor, *, factor: float = 1.0, tokens: int = 0
) -> Steering:
    """The edit at one layer that moves a row to `factor` times the upper end of unsafe text.

    Args:
        directions: of the fit split.
        layer: where the edit is added, after the layer.
        unsafe: (n, L, d_model) residuals; the 95th percentile of their scores is the upper end of
            what text covers.
        factor: how far beyond it the trust region reaches.
        tokens: generated tokens edited beside the last prompt position.
    """
    unit, gap = directions.direction[layer].double(), float(directions.norms[layer])
    zero = float(directions.mu_safe[layer].double() @ unit)
    upper = float(((unsafe[:, layer].double() @ unit - zero) / gap).quantile(0.95))
    reach = max(upper * factor, 1e-6)
    return Steering(
        layer=layer,
        direction=directions.direction[layer],
        zero=zero,
        gap=gap,
        offsets={"text": 0.0},
        gain=reach / RAMP,
        a_max=reach,
        region_max=reach,
        tokens=tokens,
    )


class Unconditional:
    """A detector that steers every row, for measuring the edit without the gate."""

    def __init__(self, steering: Steering) -> None:
        self.steering = steering
        self.layers = (steering.layer,)
        self.steering_layer: int | None = steering.layer
        self.steer_tokens = steering.tokens

    def decide(
        self, residuals: Tensor, kinds: Sequence[str], floors: Sequence[float] | None = None
    ) -> Decision:
        """Steer, whatever was read: (rows, 1, d_model)."""
        rows = len(kinds)
        scores = torch.full((rows,), OPEN, dtype=torch.float64)
        return Decision(scores, [Action.STEER] * rows, [False] * rows)

    def edit(self, decision: Decision, residual: Tensor, kinds: Sequence[str]) -> Tensor:
        """The steering's own edit behind an open gate: (rows, d_model)."""
        gates = torch.zeros(len(kinds), dtype=torch.float64)
        return self.steering.edits(decision.scores, residual, gates, kinds)


def causal_effects(
    collect: Collector,
    requests: Sequence[Request],
    candidates: Sequence[Steering],
    token_ids: Sequence[int],
) -> list[CausalEffect]:
    """The effect of each candidate edit on the same safe requests, one forward pass each."""
    plain = logits_of(collect, requests)
    before = refusal_log_odds(plain, token_ids)
    effects = []
    for done, steering in enumerate(candidates, start=1):
        edited = logits_of(collect, requests, Unconditional(steering))
        shift = (refusal_log_odds(edited, token_ids) - before).mean()
        effects.append(CausalEffect(float(shift), float(kl_divergence(plain, edited).mean())))
        collect.progress("causal effect", done, len(candidates))
    return effects


def logits_of(
    collect: Collector, requests: Sequence[Request], detector: Unconditional | None = None
) -> Tensor:
    """First-token logits of requests, batched, in their order: (n, vocab) float32."""

    def read(batch: Sequence[Request]) -> Tensor:
        return next_token_logits(collect.loaded, collect.encoder.encode(batch), detector)

    return torch.stack(collect.each(requests, read))


def refused(
    collect: Collector,
    requests: Sequence[Request],
    steering: Steering | None,
    prefixes: Sequence[str],
) -> list[bool]:
    """Which requests are refused (greedy, 8 tokens), all of them steered or none."""
    detector = None if steering is None else Unconditional(steering)

    def answered(batch: Sequence[Request]) -> Iterator[bool]:
        encoded = collect.encoder.encode(batch)
        for row in generate_rows(collect.loaded, encoded, detector, ANSWER):
            text = collect.loaded.tokenizer.decode(list(row.token_ids), skip_special_tokens=True)
            yield is_refusal(str(text), prefixes)

    return collect.each(requests, answered)


def refusal_token_ids(
    tokenize: Callable[[str], Sequence[int]], prefixes: Sequence[str]
) -> list[int]:
    """First tokens of the refusal prefixes, as they begin an answer."""
    return sorted({tokenize(prefix)[0] for prefix in prefixes if prefix})


def refusal_log_odds(logits: Tensor, token_ids: Sequence[int]) -> Tensor:
    """Log p - log(1 - p) of a refusal's first token: (rows, vocab) -> (rows,) float64.

    The refusal metric of Arditi et al. (2024, arXiv 2406.11717, section 2.3).
    """
    logp = logits.double().log_softmax(-1)
    rest = torch.ones(logits.shape[-1], dtype=torch.bool)
    rest[list(token_ids)] = False
    odds: Tensor = logp[:, ~rest].logsumexp(-1) - logp[:, rest].logsumexp(-1)
    return odds


def kl_divergence(plain: Tensor, edited: Tensor) -> Tensor:
    """KL(plain || edited) of next-token distributions in nats: (rows, vocab) twice -> (rows,)."""
    p, q = plain.double().log_softmax(-1), edited.double().log_softmax(-1)
    terms = (p.exp() * (p - q)).masked_fill(p.isneginf(), 0.0)  # tokens never said add nothing
    kl: Tensor = terms.sum(-1)
    return kl
