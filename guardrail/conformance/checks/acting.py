"""Steering moves the rows and positions it is meant to; flags stop theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from guardrail.conformance import reference
from guardrail.conformance.answers import answered, checked, registered
from guardrail.conformance.outcomes import DoesNotApplyError, Figures, expect
from guardrail.conformance.subject import MOVE, TOKENS, rules
from guardrail.conformance.trace import seen_at
from guardrail.model.decoder import decoder_layers
from guardrail.types import Action

if TYPE_CHECKING:
    from torch import Tensor

    from guardrail.artefact import Artefact
    from guardrail.conformance.answers import Answers
    from guardrail.conformance.subject import Ask, Subject

FLAGS = frozenset({Action.FLAG})


def steering(subject: Subject) -> Figures:
    """One row of a batch is moved by the vector it should be, at its positions; the others not."""
    layers = subject.layers
    figures: Figures = {"layer": layers.steer}
    for steer_tokens in (0, 2):
        artefact, top, gate = subject.steering(layers.read, layers.steer, steer_tokens=steer_tokens)
        vectors = wanted(subject, artefact, top, gate)
        guarded, before, after = _between(subject, subject.texts, artefact, gate)
        # the vector's length follows the score, which is right within a tolerance
        scored = subject.tolerance(artefact, subject.texts[top].states)
        steer = artefact.header.steering
        slack = scored * float(vectors.norm()) * (0 if steer is None else steer.gain) / MOVE
        _expect_edit(subject, before, after, vectors, steer_tokens, slack)
        figures |= _expect_answers(subject, guarded, artefact, vectors, steer_tokens)
    if subject.loaded.is_multimodal:
        figures["image_edit_from_reference"] = _picture_steered(subject, subject.pictures[0])
    return figures


def _picture_steered(subject: Subject, ask: Ask) -> float:
    """How far the edit of a request with a picture ends from the border of the trust region.

    The region is set to end the edit, so that the offset of its kind has a part in its length.
    """
    layers, kind = subject.layers, ask.request.offset_kind
    flat = subject.directions.artefact(layers.read, layers.steer)
    (score,) = subject.scores(flat, [ask])
    region = reference.place(flat, ask.states, kind) + MOVE
    artefact = subject.directions.artefact(layers.read, layers.steer, gain=2 * MOVE, region=region)
    vector = reference.edit(artefact, ask.states, score, score - 1, kind)[None]
    _, before, after = _between(subject, [ask], artefact, score - 1)
    slack = subject.relative * float(ask.states[layers.steer].norm())
    return _expect_edit(subject, before, after, vector, 0, slack)


def early(subject: Subject) -> Figures:
    """The edit comes before the readout: the last position is run again, the rest is kept."""
    layers = subject.layers
    if layers.early_steer is None or layers.late_read is None:
        raise DoesNotApplyError("the model has too few layers for an edit before the readout")
    artefact, top, gate = subject.steering((layers.late_read,), layers.early_steer)
    vectors = wanted(subject, artefact, top, gate)
    guarded = answered(
        subject, subject.encode(subject.texts), subject.detector(artefact, rules(steer=gate))
    )
    figures = _expect_answers(subject, guarded, artefact, vectors, 0)
    rulings, _ = checked(
        subject, subject.encode(subject.texts), subject.detector(artefact, rules(steer=gate))
    )
    expect(
        [r.action for r in rulings] == [r.action for r in guarded.rulings],
        "a verdict alone and an answer differ in their actions",
    )
    return {"layer": layers.early_steer, "readout": layers.late_read} | figures


def flag(subject: Subject) -> Figures:
    """A flagged row gets no token; when all are flagged the first pass is left early."""
    layers = subject.layers
    artefact = subject.directions.artefact(layers.read, layers.steer)
    encoded, (top, gate) = subject.encode(subject.texts), subject.split(artefact)
    everyone = answered(subject, encoded, subject.detector(artefact, rules(flag=-1e6)))
    expect(not any(everyone.tokens), "a row of a batch that is all flagged got a token")
    expect(
        everyone.trace.passes == 1,
        f"a batch that is all flagged took {everyone.trace.passes} passes of the decoder",
    )
    deeper = sorted(layer for layer in everyone.trace.layers if layer > layers.read[-1])
    expect(
        not deeper and everyone.trace.heads == 0,
        f"layers {deeper} ran, and the head {everyone.trace.heads} times, with all rows flagged",
    )
    mixed = answered(subject, encoded, subject.detector(artefact, rules(flag=gate, actions=FLAGS)))
    plain = reference.generate(subject.model, subject.text_inputs, TOKENS)
    plain[top] = []
    expect(
        mixed.tokens == plain,
        f"with row {top} flagged the batch gives {mixed.tokens}, wanted {plain}",
    )
    expect(mixed.rows[top].finish == "flag", "a flagged row ended for another reason")
    return {
        "layers_run": layers.read[-1] + 1,
        "layers": layers.count,
        "flagged": f"1 of {len(plain)}",
    }


def wanted(subject: Subject, artefact: Artefact, top: int, gate: float) -> Tensor:
    """What each text should be moved by: (rows, d_model) float64, zero but for the top one."""
    states = subject.texts[top].states
    kind = subject.texts[top].request.offset_kind
    value = reference.score(artefact, states, kind)
    vectors = torch.zeros(len(subject.texts), states.shape[-1], dtype=torch.float64)
    vectors[top] = reference.edit(artefact, states, value, gate, kind)
    return vectors


def _between(
    subject: Subject, asks: list[Ask], artefact: Artefact, gate: float
) -> tuple[Answers, list[Tensor], list[Tensor]]:
    """Answers, and the steering layer's output before and after the guard's own hook."""
    detector = subject.detector(artefact, rules(steer=gate))
    layer = decoder_layers(subject.model)[subject.layers.steer]
    encoded = subject.encode(asks)
    with (
        seen_at(layer) as before,
        registered(subject.model, detector) as hooks,
        seen_at(layer) as after,
    ):
        guarded = answered(subject, encoded, detector, hooks=hooks)
    return guarded, before, after


def _expect_edit(
    subject: Subject,
    before: list[Tensor],
    after: list[Tensor],
    vectors: Tensor,
    steer_tokens: int,
    slack: float,
) -> float:
    """The difference is the vector at the last prompt position and `steer_tokens` later ones.

    Gives the largest distance from that.
    """
    worst = 0.0
    for number, (old, new) in enumerate(zip(before, after, strict=True)):
        moved = (new.double() - old.double()).cpu()
        should = torch.zeros_like(moved)
        if number <= steer_tokens:
            should[:, -1] = vectors
        expect(
            not bool(moved[should == 0].any()),
            f"pass {number} edits rows or positions that it should leave as they are",
        )
        apart = float((moved - should).abs().max())
        bound = subject.relative * float(old.abs().max()) + slack
        expect(
            apart <= bound,
            f"the edit of pass {number} is {apart:.2e} from the wanted vector (bound {bound:.2e})",
        )
        worst = max(worst, apart)
    return worst


def _expect_answers(
    subject: Subject, guarded: Answers, artefact: Artefact, vectors: Tensor, steer_tokens: int
) -> Figures:
    """Rows that pass keep their tokens, the steered one gets those of the slow reference."""
    inputs, model = subject.text_inputs, subject.model
    top, steer = int(vectors.norm(dim=1).argmax()), artefact.header.steering
    layer = -1 if steer is None else steer.layer
    actions = [ruling.action for ruling in guarded.rulings]
    expect(
        [row for row, action in enumerate(actions) if action is Action.STEER] == [top],
        f"row {top} was to be steered alone; the actions are {[str(a) for a in actions]}",
    )
    plain = reference.generate(model, inputs, TOKENS)
    expect(
        all(guarded.tokens[row] == plain[row] for row in range(len(plain)) if row != top),
        f"rows beside the steered one get {guarded.tokens}, plain generation gives {plain}",
    )
    figures = _expect_logits(subject, guarded.trace.logits[0], layer, vectors)
    if not subject.exact:
        return figures
    slow = reference.steered_tokens(
        model, inputs, layer, vectors, TOKENS, steer_tokens=steer_tokens
    )
    if slow is None:
        return figures
    expect(
        guarded.tokens[top] == slow[top],
        f"the steered row gets {guarded.tokens[top]}, the slow reference gives {slow[top]}",
    )
    return figures | {"reference_tokens": TOKENS}


def _expect_logits(subject: Subject, found: Tensor, layer: int, vectors: Tensor) -> Figures:
    """The edit changes the steered row's next token as it should: `found` is (rows, vocab)."""
    inputs, model = subject.text_inputs, subject.model
    top = int(vectors.norm(dim=1).argmax())
    logits = reference.steered_logits(model, inputs, layer, vectors)[top].double()
    unmoved = reference.steered_logits(model, inputs, layer, torch.zeros_like(vectors))[top]
    effect = float((logits - unmoved.double()).abs().max())
    bound = min(50 * subject.relative, 0.1) * float(logits.abs().max())
    expect(effect > bound, f"the edit moves the next token's logits by {effect:.2e} only")
    apart = float((found[top].double() - logits).abs().max())
    expect(
        apart <= bound,
        f"the steered row's first logits are {apart:.2e} from the reference (bound {bound:.2e})",
    )
    return {
        "strength": float(vectors.norm()),
        "logits_moved_by": effect,
        "logits_from_reference": apart,
        "reference_tokens": 1,
    }
