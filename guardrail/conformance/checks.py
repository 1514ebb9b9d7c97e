"""What a user asks of a guard inside a model: each check is one question and what a no means."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from guardrail.conformance import reference
from guardrail.conformance.reference import DoesNotApplyError, expect, placed, traced
from guardrail.conformance.subject import (
    TEXTS,
    TOKENS,
    chat_behind,
    found_in,
    picture_request,
    rules,
    score_of,
    video_request,
)
from guardrail.guard import Guard
from guardrail.types import Action, TextPart

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic import JsonValue
    from torch import Tensor

    from guardrail.artefact import Artefact
    from guardrail.conformance.subject import Ask, Subject
    from guardrail.types import Request, TurnSpan

    Figures = dict[str, JsonValue]

UNSEEN = (
    "but to this model one {0} of noise scores like another (within the tolerance), so it was not "
    "seen whether each is read"
)


@dataclass(frozen=True, slots=True)
class Definition:
    """A check: what holds where it ends with a yes, and what a wrong result means to a user.

    A `mode` is a way of asking, or a kind of input, that a guard may also fail closed at.
    """

    name: str
    title: str
    run: Callable[[Subject], Figures]
    wrong: str = "the guard does something else than its slow reference"
    mode: bool = False


def unsteered(subject: Subject) -> Figures:
    """Tokens and logits of requests that pass are those of plain `generate`, bit for bit."""
    figures: Figures = {"text": _same(subject, subject.texts[0])}
    if subject.loaded.is_multimodal:
        figures["image"] = _same(subject, subject.pictures[0])
    return figures | {"new_tokens": TOKENS, "tolerance": 0}


def _same(subject: Subject, ask: Ask) -> float:
    """The largest difference of a logit, which has to be 0."""
    artefact, kind = subject.artefact(None, subject.steer), ask.request.offset_kind
    with traced(subject.model) as plain:
        tokens = reference.generate(subject.model, ask.inputs, TOKENS)
    with traced(subject.model) as guarded:
        (row,) = subject.answers(subject.encode([ask]), artefact, rules())
    expect(
        list(row.token_ids) == tokens[0],
        f"a request of kind {kind!r} that passes gets {list(row.token_ids)}, plain generation "
        f"gives {tokens[0]}",
    )
    expect(
        len(plain.logits) == len(guarded.logits),
        f"the head ran {len(guarded.logits)} times, plainly {len(plain.logits)} times",
    )
    pairs = list(zip(plain.logits, guarded.logits, strict=True))
    apart = max((float((a - b).abs().max()) for a, b in pairs), default=0.0)
    same = all(torch.equal(a, b) for a, b in pairs)
    expect(same, f"logits of a request of kind {kind!r} that passes differ by {apart:.2e}")
    return apart


def score(subject: Subject) -> Figures:
    """The score of every kind of request is that of the slow reference."""
    artefact = subject.artefact()
    scores = subject.scores(artefact, subject.texts)
    figures: Figures = {"spread": max(scores) - min(scores)}
    figures[subject.texts[0].request.offset_kind] = _apart(subject, artefact, subject.texts[0])
    if subject.text_trouble is not None:
        figures["note"] = (
            f"not for text alone, which its own processor refuses: {subject.text_trouble}"
        )
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


def _apart(subject: Subject, artefact: Artefact, ask: Ask) -> float:
    """How far the guard's score of a request is from the reference."""
    (wanted,), bound = subject.scores(artefact, [ask]), subject.tolerance(artefact, [ask])
    policy = rules(flag=wanted - 2 * bound, only=ask.request.modality)
    (ruling,) = subject.rulings(subject.encode([ask]), artefact, policy)
    apart, kind = abs(score_of(ruling) - wanted), ask.request.offset_kind
    expect(
        apart <= bound,
        f"the score of a request of kind {kind!r} is {apart:.2e} from the reference "
        f"(bound {bound:.2e})",
    )
    expect(
        ruling.action is Action.FLAG,
        f"a request of kind {kind!r} is not held against the thresholds of its own modality",
    )
    return apart


def batch(subject: Subject) -> Figures:
    """Rows of unequal length, padded on the left, get the scores that they get alone."""
    artefact = subject.artefact()
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
    rulings = subject.rulings(encoded, artefact, rules())
    wanted = subject.scores(artefact, asks)
    apart = [abs(score_of(r) - w) for r, w in zip(rulings, wanted, strict=True)]
    bound, worst = subject.tolerance(artefact, asks), max(range(len(apart)), key=apart.__getitem__)
    expect(
        apart[worst] <= bound,
        f"row {worst} of a batch of {len(asks)} has a score {apart[worst]:.2e} from what it has "
        f"alone (bound {bound:.2e})",
    )
    return apart[worst]


def turns(subject: Subject) -> Figures:
    """An earlier turn, and what stands in it, scores as it does when it is all there is."""
    flat, windowed, ask = subject.artefact(), subject.windowed(), subject.texts[2]
    (last,) = subject.scores(flat, [ask])
    states = reference.positions(subject.model, ask.inputs, flat.header.readout.layers)
    span = subject.encode([ask]).parts[0].turns[-1]
    _expect_words(subject, ask, span)
    window = reference.highest_window(windowed, states[span.start : span.stop])
    bound = subject.slack(flat, states[span.start :])
    figures: Figures = {"tolerance": bound}
    figures["window"] = _found_apart(subject, windowed, ask.request, window, bound, "window")
    chat = chat_behind(ask.request)
    _expect_same_start(subject, chat, ask)
    figures["turn"] = _found_apart(subject, flat, chat, last, bound, "earlier turn")
    (ruling,) = subject.rulings(subject.encoder.encode([chat]), windowed, rules())
    expect(
        found_in(ruling) >= max(last, window) - bound,
        f"with more behind it a request scores {found_in(ruling):.4f}, less than the "
        f"{max(last, window):.4f} of before",
    )
    return figures


def _found_apart(
    subject: Subject,
    artefact: Artefact,
    request: Request,
    wanted: float,
    bound: float,
    what: str,
) -> float:
    """How far what is read beside the last position is from the reference."""
    (ruling,) = subject.rulings(subject.encoder.encode([request]), artefact, rules())
    apart = abs(found_in(ruling) - wanted)
    expect(
        apart <= bound,
        f"the score of a request's {what} is {apart:.2e} from the reference (bound {bound:.2e})",
    )
    return apart


def _expect_words(subject: Subject, ask: Ask, span: TurnSpan) -> None:
    """A message's positions are those of its words."""
    (words,) = (part.text for part in ask.request.messages[0].parts if isinstance(part, TextPart))
    there = subject.loaded.tokenizer.decode(ask.inputs["input_ids"][0, span.start : span.stop])
    shown, said = ("".join(filter(str.isalnum, text)).casefold() for text in (there, words))
    expect(said in shown, f"where {words!r} should be said, the prompt says {there!r}")


def _expect_same_start(subject: Subject, chat: Request, ask: Ask) -> None:
    """End the check where the model is not shown the first turn as it was."""
    (parts,), inputs = (encoded := subject.encoder.encode([chat])).parts, encoded.inputs
    ends = [h.position + 1 for h in parts.headers if h.message == len(ask.request.messages)]
    if not ends or not torch.equal(
        inputs["input_ids"][0, : ends[0]].cpu(), ask.inputs["input_ids"][0].cpu()
    ):
        raise DoesNotApplyError(
            "the chat template shows an earlier turn otherwise than when it was the last one"
        )


def steering(subject: Subject) -> Figures:
    """One row of a batch is moved by the vector it should be, the others say what they would."""
    case, encoded = subject.steered(), subject.encode(subject.texts)
    with traced(subject.model) as guarded:
        rows = subject.answers(encoded, case.artefact, case.policy)
    actions = [row.ruling.action for row in rows if row.ruling is not None]
    expect(
        [row for row, action in enumerate(actions) if action is Action.STEER] == [case.row],
        f"row {case.row} was to be steered alone; the actions are {[str(a) for a in actions]}",
    )
    plain = reference.generate(subject.model, subject.text_inputs, TOKENS)
    tokens = [list(row.token_ids) for row in rows]
    expect(
        all(tokens[row] == plain[row] for row in range(len(plain)) if row != case.row),
        f"rows beside the steered one get {tokens}, plain generation gives {plain}",
    )
    figures: Figures = {"layer": subject.steer}
    return figures | logits_steered(subject, guarded.logits[:1], subject.steer, case.vectors)


def logits_steered(subject: Subject, found: list[Tensor], layer: int, vectors: Tensor) -> Figures:
    """The edit changes the steered row's next token as it should: `found` holds (rows, vocab)."""
    inputs, model = subject.text_inputs, subject.model
    row = int(vectors.norm(dim=1).argmax())
    logits = reference.steered_logits(model, inputs, layer, vectors)[row].double()
    unmoved = reference.steered_logits(model, inputs, layer, torch.zeros_like(vectors))[row]
    effect = float((logits - unmoved.double()).abs().max())
    bound = min(50 * subject.relative, 0.1) * float(logits.abs().max())
    expect(effect > bound, f"the edit moves the next token's logits by {effect:.2e} only")
    apart = float((found[0][row].double() - logits).abs().max())
    expect(
        apart <= bound,
        f"the steered row's first logits are {apart:.2e} from the reference (bound {bound:.2e})",
    )
    return {
        "strength": float(vectors.norm()),
        "logits_moved_by": effect,
        "logits_from_reference": apart,
    }


def flag(subject: Subject) -> Figures:
    """A flagged row gets no token, the others theirs; all flagged, the first pass is left early."""
    artefact = subject.artefact(None, subject.steer)
    encoded, (top, gate) = subject.encode(subject.texts), subject.split(artefact)
    with traced(subject.model) as trace:
        everyone = subject.answers(encoded, artefact, rules(flag=-1e6))
    expect(
        not any(row.token_ids for row in everyone),
        "a row of a batch that is all flagged got a token",
    )
    expect(
        trace.passes == 1 and not trace.logits,
        f"a batch that is all flagged took {trace.passes} passes of the decoder and "
        f"{len(trace.logits)} of the head",
    )
    policy = rules(flag=gate, actions=frozenset({Action.FLAG}))
    mixed = subject.answers(encoded, artefact, policy)
    plain = reference.generate(subject.model, subject.text_inputs, TOKENS)
    plain[top] = []
    tokens = [list(row.token_ids) for row in mixed]
    expect(tokens == plain, f"with row {top} flagged the batch gives {tokens}, wanted {plain}")
    expect(mixed[top].finish == "flag", "a flagged row ended for another reason")
    return {"flagged": f"1 of {len(plain)}", "passes_when_all_are": trace.passes}


def stream(subject: Subject) -> Figures:
    """The verdict is there before the first chunk; the chunks are the answer."""
    request, chunks, known = subject.texts[0].request, [], []
    with Guard(subject.loaded, subject.artefact(), policy=rules()) as guard:
        # a model's own config may ask for samples, which differ from call to call
        with guard.stream(request, max_new_tokens=TOKENS, temperature=0) as parts:
            for chunk in parts:
                known.append(parts.verdict is not None)
                chunks.append(chunk)
        answer = guard.generate(request, max_new_tokens=TOKENS, temperature=0)
        expect(all(known), "a chunk came before the verdict")
        expect("".join(chunks) == answer.text, "the chunks are not the answer")
        with guard.with_policy(rules(flag=-1e6)) as strict:
            refused = list(strict.stream(request, max_new_tokens=TOKENS))
        expect(
            refused == [strict.policy.refusal_message],
            "a flagged request's stream holds more than the refusal",
        )
    return {"chunks": len(chunks)}


def video(subject: Subject) -> Figures:
    """A video is scored by what the model is shown of it, as a slow pass over that says."""
    subject.expect_pictures()
    artefact, request = subject.artefact(), video_request()
    encoded = subject.encoder.encode([request])
    expect(encoded.kinds == ("video",), f"a video is taken for {encoded.kinds}")
    native = subject.encoder.video_as == "video"
    # the slow reference has the media in the form in which they are shown
    ask, other = (
        replace(subject.asked(video_request(seed=s, as_pictures=not native)), request=request)
        for s in (0, 100)
    )
    _expect_inputs(subject, encoded.inputs, ask.inputs)
    apart = _apart(subject, artefact, ask)
    (row,) = subject.answers(encoded, artefact, rules())
    plain = reference.generate(subject.model, ask.inputs, TOKENS)[0]
    expect(list(row.token_ids) == plain, f"it gives {list(row.token_ids)}, plainly {plain}")
    effect, shown = subject.effect(artefact, ask, other), "native" if native else "frames"
    figures: Figures = {"shown": shown, "score_from_reference": apart, "frames": 4}
    if effect <= 1:
        figures["note"] = UNSEEN.format("video")
    return figures | {"effect": effect}


def _expect_inputs(subject: Subject, found: Any, plain: dict[str, Any]) -> None:
    """The model is given what plain transformers makes of all frames, in order, at their times."""
    expect(set(found) == set(plain), f"the inputs are {sorted(found)}, plainly {sorted(plain)}")
    for name, value in plain.items():
        same = not isinstance(value, torch.Tensor) or torch.equal(
            placed(subject.loaded, found[name]), value
        )
        expect(same, f"the input {name!r} of a video is not what plain transformers makes of it")


CHECKS = (
    Definition(
        "unsteered",
        "what passes is answered as without a guard, bit for bit",
        unsteered,
        "a guard changes answers that it lets through",
    ),
    Definition(
        "score",
        "scores are read where they must be; pictures count",
        score,
        "thresholds mean nothing here, for scores are not read where an artefact is fitted",
    ),
    Definition(
        "batch",
        "a request scores in a batch as it does alone",
        batch,
        "a verdict depends on what else is asked at the same time",
    ),
    Definition(
        "turns",
        "what follows a request does not lower its score",
        turns,
        "a request is missed once something is written behind it",
        mode=True,
    ),
    Definition(
        "stream",
        "a stream is the whole answer, after its verdict",
        stream,
        "a stream is not what its verdict is about",
    ),
    Definition(
        "steering",
        "a request is steered as its score says, and no other",
        steering,
        "steering does not do what an artefact's strength was measured for",
    ),
    Definition(
        "flag",
        "a flag stops its request before the first token, and no other",
        flag,
        "a flagged request is answered, or takes others with it",
    ),
    Definition(
        "video",
        "videos are read as transformers shows them to the model",
        video,
        "verdicts on videos are about something else than the video",
        mode=True,
    ),
)
