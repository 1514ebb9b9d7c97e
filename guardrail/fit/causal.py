"""Does the direction cause refusals? Measured on safe prompts, at the first token of the answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guardrail.decide.detector import Decision, Steering
from guardrail.model.generate import next_token_logits
from guardrail.types import Action, Request

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.fit.collect import Collector

OPEN = 1e6  # a detection score above any gate


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


@dataclass(frozen=True)
class CausalEffect:
    """What an edit does to next-token distributions: mean shift of refusal log-odds, and KL."""

    log_odds_shift: float
    kl: float


def refusal_token_ids(tokenize: object, prefixes: Sequence[str]) -> list[int]:
    """First tokens of the refusal prefixes, as they begin an answer."""
    ids = {tokenize(prefix)[0] for prefix in prefixes if prefix}  # type: ignore[operator]
    return sorted(ids)


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


def logits_of(
    collect: Collector, requests: Sequence[Request], detector: Unconditional | None = None
) -> Tensor:
    """First-token logits of requests, batched, in their order: (n, vocab) float32."""
    rows: list[Tensor] = [torch.empty(0)] * len(requests)
    for batch in collect.batches(requests):
        encoded = collect.encoder.encode([requests[i] for i in batch])
        for i, row in zip(batch, next_token_logits(collect.loaded, encoded, detector), strict=True):
            rows[i] = row
    return torch.stack(rows)


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
