"""Where to edit, how far and for how long: calibrated together, on text, behind the gate."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guardrail.decide.detector import Steering
from guardrail.fit.causal import Unconditional, kl_divergence, logits_of
from guardrail.model.generate import generate_rows
from guardrail.model.settings import Settings
from guardrail.refusal import is_refusal
from guardrail.stats import Rate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.fit.collect import Collector
    from guardrail.fit.direction import Directions
    from guardrail.types import Request

FACTORS = (1.0, 1.25, 1.5, 2.0, 2.5)
WEAKER = (0.75, 0.5)  # when even the first factor breaks a bound
TOKENS = (0, 8)
RAMP = 0.05  # score above the gate at which the move is whole: nearly a step, but continuous
KL_BOUND = 0.1  # nats on safe prompts, behind the gate (Arditi et al. 2024, appendix C)
ENOUGH = 0.95  # induced refusal beyond which a stronger edit only costs
ANSWER = Settings(max_new_tokens=8, do_sample=False)


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


def refused(
    collect: Collector,
    requests: Sequence[Request],
    steering: Steering | None,
    prefixes: Sequence[str],
) -> list[bool]:
    """Which requests are refused (greedy, 8 tokens), all of them steered or none."""
    detector = None if steering is None else Unconditional(steering)
    answers = [False] * len(requests)
    for batch in collect.batches(requests):
        encoded = collect.encoder.encode([requests[i] for i in batch])
        for i, row in zip(
            batch, generate_rows(collect.loaded, encoded, detector, ANSWER), strict=True
        ):
            text = collect.loaded.tokenizer.decode(list(row.token_ids), skip_special_tokens=True)
            answers[i] = is_refusal(str(text), prefixes)
    return answers


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
