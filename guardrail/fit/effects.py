"""What a model says once its residual stream is edited: next tokens, refusals, broken answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guardrail.decide.detector import Decision, Steering
from guardrail.fit.refusal import is_refusal
from guardrail.model.generate import begun_rows, continued_logits, next_token_logits
from guardrail.model.settings import Settings
from guardrail.stats import Rate
from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from guardrail.fit.collect import Collector
    from guardrail.types import Request, RowParts

OPEN = 1e6  # a detection score above any gate
UNLIKELY = 4.0  # nats a token under the model itself, from which an answer is garbled
ANSWER = Settings(max_new_tokens=8, do_sample=False)


class Unconditional:
    """A detector that steers every row, for measuring the edit without the gate."""

    def __init__(self, steering: Steering) -> None:
        self.steering = steering
        self.layers = self.reads = (steering.layer,)
        self.steering_layer: int | None = steering.layer
        self.steer_tokens = steering.tokens

    def reading(self, rows: Sequence[RowParts], prompt_len: int) -> None:
        """Nothing else is read."""

    def decide(self, residuals: Tensor, kinds: Sequence[str], *_beside: object) -> Decision:
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
    """The first tokens of an answer, greedy, and the logits of the first one, (vocab,) float32."""

    request: Request
    token_ids: tuple[int, ...]
    text: str
    logits: Tensor


def answers(
    collect: Collector, requests: Sequence[Request], steering: Steering | None
) -> list[Answer]:
    """How the requests are answered, all of them steered or none."""
    detector = None if steering is None else Unconditional(steering)

    def answered(batch: Sequence[Request]) -> Iterator[Answer]:
        encoded = collect.encoder.encode(batch)
        rows, logits = begun_rows(collect.loaded, encoded, detector, ANSWER)
        for request, row, first in zip(batch, rows, logits, strict=True):
            text = collect.loaded.tokenizer.decode(list(row.token_ids), skip_special_tokens=True)
            yield Answer(request, row.token_ids, str(text), first)

    return collect.each(requests, answered)


def refusals(said: Sequence[Answer], prefixes: Sequence[str]) -> list[bool]:
    """Which answers are refusals."""
    return [is_refusal(one.text, prefixes) for one in said]


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
