"""The right layers, the right position, the right formula."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import torch

from guardrail.conformance import reference
from guardrail.conformance.answers import checked, score_of
from guardrail.conformance.outcomes import Figures, WrongResultError, expect, first_line
from guardrail.conformance.prompts import TEXTS, picture_request, text_requests
from guardrail.conformance.subject import rules
from guardrail.conformance.trace import seen_at, traced
from guardrail.errors import GuardrailError
from guardrail.model.decoder import decoder_layers, self_attention_layers
from guardrail.model.generate import last_residuals
from guardrail.types import Action

if TYPE_CHECKING:
    from guardrail.artefact import Artefact
    from guardrail.conformance.subject import Ask, Subject
    from guardrail.types import Request


UNSEEN = (
    "but to this model one {0} of noise scores like another (within the tolerance), so it was not "
    "seen whether each is read"
)


def layers(subject: Subject) -> Figures:
    """Each layer runs once in a prefill, in the order of `hidden_states`, and is what is read."""
    asks = subject.texts[:1]
    everywhere = range(subject.layers.count)
    runs: tuple[int, ...] = self_attention_layers(subject.model)
    _each_once(subject, asks[0], set(runs))
    if subject.loaded.is_multimodal:
        asks, runs = subject.pictures[:1], tuple(everywhere)
        _each_once(subject, asks[0], set(everywhere))
    read = last_residuals(subject.loaded, subject.encode(asks), runs)[0].double()
    inner = [(number, layer) for number, layer in enumerate(runs) if layer != runs[-1]]
    apart = max(float((read[n] - asks[0].states[layer]).abs().max()) for n, layer in inner)
    bound = subject.relative * float(asks[0].states.norm(dim=-1).max())
    expect(
        apart <= bound,
        f"what is read behind a layer is {apart:.2e} from `hidden_states` (bound {bound:.2e})",
    )
    return {"layers": subject.layers.count, "largest_difference": apart}


@torch.no_grad()
def _each_once(subject: Subject, ask: Ask, expected: set[int]) -> None:
    model: Any = subject.model
    stack = decoder_layers(subject.model)
    read = subject.layers.read[-1]
    with traced(subject.model) as trace, seen_at(stack[read]) as outputs:
        states = model(**ask.inputs, output_hidden_states=True, use_cache=False).hidden_states
    expect(
        trace.layers == Counter(expected),
        f"layers ran {dict(sorted(trace.layers.items()))} times, wanted once each of "
        f"{sorted(expected)}",
    )
    number = reference.layers_of(subject.model, len(states) - 1).index(read)
    expect(
        torch.equal(outputs[0], states[number + 1]),
        "the layers found are not those that `hidden_states` lists",
    )


def score(subject: Subject) -> Figures:
    """The score of every kind of request is that of the slow reference."""
    artefact = subject.directions.artefact(subject.layers.read)
    scores = subject.scores(artefact, subject.texts)
    figures: Figures = {"spread": max(scores) - min(scores)}
    kind = subject.texts[0].request.offset_kind
    figures[kind] = _apart(subject, artefact, subject.texts[0])
    if subject.text_trouble is not None:
        figures["note"] = (
            f"not for text alone, which its own processor refuses: {subject.text_trouble}"
        )
        _expect_refused(subject, text_requests()[0])
    if subject.loaded.is_multimodal:
        for name, ask in zip(("image", "images"), subject.pictures, strict=False):
            figures[name] = _apart(subject, artefact, ask)
        other = subject.asked(picture_request(1, seed=100))
        effect = subject.effect(artefact, subject.pictures[0], other)
        figures["image_effect"] = effect
        if effect <= 1:
            figures["note"] = UNSEEN.format("picture")
        if subject.one_picture_only is not None:
            figures["note"] = f"not for two pictures: {subject.one_picture_only}"
    return figures


def _expect_refused(subject: Subject, request: Request) -> None:
    """What the model's own processor does not take is refused by the guard, clearly."""
    try:
        subject.encoder.encode([request])
    except GuardrailError:
        return
    except Exception as error:
        raise WrongResultError(f"text alone is no clear error: {first_line(error)}") from error
    raise WrongResultError("the guard takes text alone, the model's own processor does not")


def _apart(subject: Subject, artefact: Artefact, ask: Ask) -> float:
    """How far the guard's score is from the reference."""
    (wanted,) = subject.scores(artefact, [ask])
    kind, bound = ask.request.offset_kind, subject.tolerance(artefact, ask.states)
    policy = rules(flag=wanted - 2 * bound, only=ask.request.modality)
    rulings, _ = checked(subject, subject.encode([ask]), subject.detector(artefact, policy))
    apart = abs(score_of(rulings[0]) - wanted)
    expect(
        apart <= bound,
        f"the score of a request of kind {kind!r} is {apart:.2e} from the reference "
        f"(bound {bound:.2e})",
    )
    expect(
        rulings[0].action is Action.FLAG,
        f"a request of kind {kind!r} is not held against the thresholds of its own modality",
    )
    return apart


def batch(subject: Subject) -> Figures:
    """Rows of unequal length, padded on the left, get the scores that they get alone."""
    artefact = subject.directions.artefact(subject.layers.read)
    figures: Figures = {"text": _batch_apart(subject, artefact, subject.texts)}
    if subject.loaded.is_multimodal:
        asks = [
            subject.asked(picture_request(1, text, seed=seed))
            for seed, text in enumerate(TEXTS[1:3])
        ]
        figures["image"] = _batch_apart(subject, artefact, asks)
    return figures


def _batch_apart(subject: Subject, artefact: Artefact, asks: list[Ask]) -> float:
    encoded = subject.encode(asks)
    expect(len(set(encoded.lengths)) > 1, "the rows of the batch have one length")
    rulings, _ = checked(subject, encoded, subject.detector(artefact, rules()))
    wanted = subject.scores(artefact, asks)
    apart = [abs(score_of(r) - w) for r, w in zip(rulings, wanted, strict=True)]
    bound = max(subject.tolerance(artefact, ask.states) for ask in asks)
    worst = max(range(len(apart)), key=apart.__getitem__)
    expect(
        apart[worst] <= bound,
        f"row {worst} of a batch of {len(asks)} has a score {apart[worst]:.2e} from what it has "
        f"alone (bound {bound:.2e})",
    )
    return apart[worst]
