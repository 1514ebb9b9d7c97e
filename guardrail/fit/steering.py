"""Where to edit, how far and for how long: decided on what users send, behind the gate they get.

First, at which layers does the direction cause refusals? Measured on safe prompts, at the first
token of the answer. Then strength and positions are calibrated together, on requests in several
forms: what makes a model refuse a bare text does little to the same text in a picture. The gate
carries the selectivity, so harmless requests count as they are hit: those the gate opens for, of
all there are.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guardrail.decide.detector import Decision, Steering
from guardrail.decide.linear import UNMOVED
from guardrail.fit.prompts import drawn_unsafe, spread
from guardrail.fit.recentring import lines
from guardrail.fit.refusal import is_refusal
from guardrail.fit.select import FIRST_DEPTH, LAST_DEPTH, is_safe, is_unsafe
from guardrail.model.generate import continued_logits, generate_rows, next_token_logits
from guardrail.model.settings import Settings
from guardrail.stats import Rate
from guardrail.types import Action, Modality, Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from guardrail.artefact.header import Calibration
    from guardrail.fit.collect import Collector
    from guardrail.fit.directions import Directions
    from guardrail.fit.joint import JointReadout
    from guardrail.fit.readings import Readings
    from guardrail.fit.recentring import Beside
    from guardrail.policy import Thresholds
    from guardrail.types import RowParts

OPEN = 1e6  # a detection score above any gate
FIRST = 2.0  # of the upper end of unsafe text; a move merely to it often does nothing
STRONGER, WEAKER = (3.0, 4.0, 6.0), (1.5, 1.0, 0.5)
TOKENS = (0, 8)
RAMP = 0.05  # score above the gate at which the move is whole: nearly a step, but continuous
KL_BOUND = 0.1  # nats over all benign prompts, behind the gate (Arditi et al. 2024, appendix C)
FALSE_BOUND = 0.02  # of all benign prompts: refused behind the gate that were answered before
GARBLED_BOUND = 0.1  # of steered answers: neither a refusal nor what the model would ever say
UNLIKELY = 4.0  # nats a token under the model itself, from which an answer is garbled
ENOUGH = 0.95  # induced refusal beyond which a stronger edit only costs
ANSWER = Settings(max_new_tokens=8, do_sample=False)
CAUSAL_PROMPTS = 12
STEERED = {"plain": 8, "worded": 16, "pictured": 4, "drawn": 6}
"""How many unsafe prompts of each group the strength is chosen on; pictures cost most."""
MOST_BENIGN = 40  # that the gate opens for; more are sampled
CANDIDATE_LAYERS, STEERING_LAYERS = 6, 2


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
    garbled: Rate
    induced_by: dict[str, Rate] = field(default_factory=dict)

    @property
    def within_bounds(self) -> bool:
        """Whether safe prompts stay as they were, and steered answers are answers."""
        return (
            self.kl <= KL_BOUND
            and self.false_refusal.value <= FALSE_BOUND
            and (not self.garbled.n or self.garbled.value <= GARBLED_BOUND)
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

    Layers between the first ones and the last fifth are tried. An edit before the deepest layer
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


@dataclass(frozen=True)
class _Unsteered:
    """The same requests without an edit: first-token logits of benign ones, and who is refused."""

    logits: Tensor
    benign: list[bool]
    unsafe: dict[str, list[bool]]


def calibrate_steering(
    collect: Collector, data: SteeringData, starts: Sequence[Steering], prefixes: Sequence[str]
) -> list[Trial]:
    """Try every layer and position at one strength, then the best of them at others.

    Stronger ones as long as bounds are kept and not (nearly) everything unsafe is refused; weaker
    ones where a bound is broken. Sorted by: within bounds, induced refusal, then low KL.
    """
    before = _Unsteered(
        logits=logits_of(collect, data.benign) if data.benign else torch.zeros(0, 1),
        benign=refusals(answers(collect, data.benign, None), prefixes),
        unsafe={
            name: refusals(answers(collect, rows, None), prefixes)
            for name, rows in data.unsafe.items()
        },
    )
    total = len(starts) * len(TOKENS) + len(STRONGER)
    trials: list[Trial] = []

    def attempt(start: Steering, factor: float, tokens: int) -> Trial:
        trial = _try(collect, data, _stronger(start, factor, tokens), factor, before, prefixes)
        trials.append(trial)
        collect.progress("steering strength", len(trials), total)
        return trial

    for start, tokens in product(starts, TOKENS):
        attempt(start, FIRST, tokens)
    last = min(trials, key=preference)
    begin = next(start for start in starts if start.layer == last.steering.layer)
    too_strong = not last.within_bounds
    for factor in WEAKER if too_strong else STRONGER:
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
    said: list[Answer] = []
    if data.benign:
        edited = logits_of(collect, data.benign, Unconditional(steering))
        kl = float(kl_divergence(before.logits, edited).sum()) / data.benign_total
        said += answers(collect, data.benign, steering)
        now = refusals(said, prefixes)
        newly = sum(a and not b for a, b in zip(now, before.benign, strict=True))
    induced = {}
    for name, rows in data.unsafe.items():
        steered = answers(collect, rows, steering)
        induced[name] = Rate.of(refusals(steered, prefixes))
        said += steered
    return Trial(
        steering=steering,
        factor=factor,
        unsteered=_together(Rate.of(rows) for rows in before.unsafe.values()),
        induced=_together(induced.values()),
        induced_by=induced,
        false_refusal=Rate(newly, data.benign_total),
        kl=kl,
        garbled=garbled(collect, said, prefixes),
    )


def _together(rates: Iterable[Rate]) -> Rate:
    found = list(rates)
    return Rate(sum(rate.hits for rate in found), sum(rate.n for rate in found))


def garbled(collect: Collector, said: Sequence[Answer], prefixes: Sequence[str]) -> Rate:
    """Steered answers that are no refusal and that the model itself would hardly ever give.

    By the mean log-probability of their tokens under the unsteered model, of texts alone: pictures
    would have to be read again.
    """
    texts = [one for one in said if not one.request.images and not one.request.videos]
    rest = [one for one in texts if one.token_ids and not is_refusal(one.text, prefixes)]
    unlikely = sum(nats > UNLIKELY for nats in surprise(collect, rest))
    return Rate(unlikely, len(texts))


def surprise(collect: Collector, said: Sequence[Answer]) -> list[float]:
    """Mean negative log-probability of each answer's tokens under the model, in nats a token."""
    found = []
    for one in said:
        encoded = collect.encoder.encode([one.request])
        logits = continued_logits(collect.loaded, encoded, one.token_ids)
        logp = logits.double().log_softmax(-1)
        ids = torch.tensor(one.token_ids)
        found.append(-float(logp[torch.arange(len(ids)), ids].mean()))
    return found


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


class Unconditional:
    """A detector that steers every row, for measuring the edit without the gate."""

    def __init__(self, steering: Steering) -> None:
        self.steering = steering
        self.layers = self.reads = (steering.layer,)
        self.steering_layer: int | None = steering.layer
        self.steer_tokens = steering.tokens

    def reading(self, rows: Sequence[RowParts], prompt_len: int) -> None:
        """Nothing else is read."""

    def decide(self, residuals: Tensor, kinds: Sequence[str], *floors: Sequence[float]) -> Decision:
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


@dataclass(frozen=True)
class Answer:
    """The first tokens of an answer, greedy."""

    request: Request
    token_ids: tuple[int, ...]
    text: str


def answers(
    collect: Collector, requests: Sequence[Request], steering: Steering | None
) -> list[Answer]:
    """How the requests are answered, all of them steered or none."""
    detector = None if steering is None else Unconditional(steering)

    def answered(batch: Sequence[Request]) -> Iterator[Answer]:
        encoded = collect.encoder.encode(batch)
        rows = generate_rows(collect.loaded, encoded, detector, ANSWER)
        for request, row in zip(batch, rows, strict=True):
            text = collect.loaded.tokenizer.decode(list(row.token_ids), skip_special_tokens=True)
            yield Answer(request, row.token_ids, str(text))

    return collect.each(requests, answered)


def refusals(said: Sequence[Answer], prefixes: Sequence[str]) -> list[bool]:
    """Which answers are refusals."""
    return [is_refusal(one.text, prefixes) for one in said]


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
