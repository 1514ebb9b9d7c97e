"""Steering moves the rows and positions it is meant to, to the last token; flags stop early."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from guardrail.conformance import checks, reference
from guardrail.conformance.reference import DoesNotApplyError, expect
from guardrail.conformance.subject import MOVE, TOKENS, Steered, rules
from guardrail.decide.detector import Detector
from guardrail.model.decoder import decoder_layers
from guardrail.model.generate import generate_rows
from guardrail.model.hooks import check_layers, prompt_hooks
from guardrail.model.settings import Settings
from guardrail.types import Action
from tests.conformance.counting import counted, seen_at
from tests.conformance.slow import edit_to_the_border, exact, place, steered_tokens

if TYPE_CHECKING:
    from torch import Tensor

    from guardrail.conformance.checks import Figures
    from guardrail.conformance.reference import Trace
    from guardrail.conformance.subject import Ask, Subject
    from guardrail.model.generate import RowOutcome


def steering(subject: Subject) -> Figures:
    """One row of a batch is moved by the vector it should be, at its positions; the others not."""
    figures = checks.steering(subject)
    for steer_tokens in (0, 2):
        case = subject.steered(steer_tokens=steer_tokens)
        rows, trace, before, after = _between(subject, subject.texts, case)
        # the vector's length follows the score, which is right within a tolerance
        scored = subject.tolerance(case.artefact, subject.texts[case.row : case.row + 1])
        slack = scored * float(case.vectors.norm()) * case.artefact.header.steering.gain / MOVE
        _expect_edit(subject, before, after, case.vectors, steer_tokens, slack)
        figures |= _expect_answers(subject, rows, trace, case, steer_tokens)
    if subject.loaded.is_multimodal:
        figures["image_edit_from_reference"] = _picture_steered(subject, subject.pictures[0])
    return figures


def _picture_steered(subject: Subject, ask: Ask) -> float:
    """How far the edit of a request with a picture ends from the border of the trust region.

    The region is set to end the edit, so that the offset of its kind has a part in its length.
    """
    kind, flat = ask.request.offset_kind, subject.artefact(None, subject.steer)
    (score,) = subject.scores(flat, [ask])
    region = place(flat, ask.states, kind) + MOVE
    artefact = subject.artefact(None, subject.steer, gain=2 * MOVE, region_max=region)
    vectors = edit_to_the_border(artefact, ask.states, kind)[None]
    assert vectors.norm() < reference.edit(artefact, score, score - 1).norm()
    case = Steered(artefact, rules(steer=score - 1), 0, vectors)
    _, _, before, after = _between(subject, [ask], case)
    slack = subject.relative * float(ask.states[subject.steer].norm())
    return _expect_edit(subject, before, after, vectors, 0, slack)


def early(subject: Subject) -> Figures:
    """The edit comes before the readout: the last position is run again, the rest is kept."""
    layers = early_and_late(subject.read, subject.steer)
    if layers is None:
        raise DoesNotApplyError("the model has too few layers for an edit before the readout")
    before, behind = layers
    case, encoded = subject.steered((behind,), before), subject.encode(subject.texts)
    with counted(subject.model) as counts:
        rows = subject.answers(encoded, case.artefact, case.policy)
    figures = _expect_answers(subject, rows, counts.trace, case, 0)
    rulings = subject.rulings(encoded, case.artefact, case.policy)
    expect(
        [r.action for r in rulings] == [row.ruling.action for row in rows],
        "a verdict alone and an answer differ in their actions",
    )
    return {"layer": before, "readout": behind} | figures


def early_and_late(read: tuple[int, ...], steer: int) -> tuple[int, int] | None:
    """A layer for an edit and one behind it to read, of those that were chosen."""
    chosen = sorted({*read, steer})
    return (chosen[-2], chosen[-1]) if len(chosen) > 1 else None


def flag(subject: Subject) -> Figures:
    """When all are flagged, no layer behind the last readout runs."""
    figures = checks.flag(subject)
    artefact = subject.artefact(None, subject.steer)
    with counted(subject.model) as counts:
        subject.answers(subject.encode(subject.texts), artefact, rules(flag=-1e6))
    deeper = sorted(layer for layer in counts.layers if layer > subject.read[-1])
    expect(
        not deeper and counts.heads == 0,
        f"layers {deeper} ran, and the head {counts.heads} times, with all rows flagged",
    )
    return figures | {"layers_run": subject.read[-1] + 1, "layers": subject.loaded.layer_count}


def _between(
    subject: Subject, asks: list[Ask], case: Steered
) -> tuple[list[RowOutcome], Trace, list[Tensor], list[Tensor]]:
    """Answers and their trace, and the steering layer's output before and after the guard's own."""
    detector = Detector.from_artefact(case.artefact, case.policy)
    layer = decoder_layers(subject.model)[subject.steer]
    settings = Settings(max_new_tokens=TOKENS, do_sample=False)
    with (
        seen_at(layer) as before,
        prompt_hooks(subject.model, check_layers(detector, subject.model)) as hooks,
        seen_at(layer) as after,
        reference.traced(subject.model) as trace,
    ):
        rows = generate_rows(
            subject.loaded,
            subject.encode(asks),
            detector,
            settings,
            policy=case.policy,
            hooks=hooks,
        )
    return rows, trace, before, after


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
    subject: Subject, rows: list[RowOutcome], trace: Trace, case: Steered, steer_tokens: int
) -> Figures:
    """Rows that pass keep their tokens, the steered one gets those of the slow reference."""
    inputs, model, layer = subject.text_inputs, subject.model, case.artefact.header.steering.layer
    actions = [row.ruling.action for row in rows]
    expect(
        [row for row, action in enumerate(actions) if action is Action.STEER] == [case.row],
        f"row {case.row} was to be steered alone; the actions are {[str(a) for a in actions]}",
    )
    plain = reference.generate(model, inputs, TOKENS)
    tokens = [list(row.token_ids) for row in rows]
    expect(
        all(tokens[row] == plain[row] for row in range(len(plain)) if row != case.row),
        f"rows beside the steered one get {tokens}, plain generation gives {plain}",
    )
    figures = checks.logits_steered(subject, trace.logits[:1], layer, case.vectors)
    figures["reference_tokens"] = 1
    if not exact(subject):
        return figures
    slow = steered_tokens(model, inputs, layer, case.vectors, TOKENS, steer_tokens=steer_tokens)
    if slow is None:
        return figures
    expect(
        tokens[case.row] == slow[case.row],
        f"the steered row gets {tokens[case.row]}, the slow reference gives {slow[case.row]}",
    )
    return figures | {"reference_tokens": TOKENS}
