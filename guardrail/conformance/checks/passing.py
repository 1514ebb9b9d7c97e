"""What the guard lets through is what the model says by itself, at the cost of one prefill."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from guardrail.conformance import reference
from guardrail.conformance.answers import answered, checked
from guardrail.conformance.outcomes import Figures, expect
from guardrail.conformance.subject import TOKENS, rules
from guardrail.conformance.trace import traced

if TYPE_CHECKING:
    from guardrail.conformance.subject import Ask, Subject


def unsteered(subject: Subject) -> Figures:
    """Tokens and logits of requests that pass are those of plain `generate`, bit for bit."""
    figures: Figures = {"text": _same(subject, subject.texts[0])}
    if subject.loaded.is_multimodal:
        figures["image"] = _same(subject, subject.pictures[0])
    return figures | {"new_tokens": TOKENS, "tolerance": 0}


def _same(subject: Subject, ask: Ask) -> float:
    """The largest difference of a logit, which has to be 0."""
    layers = subject.layers
    detector = subject.detector(subject.directions.artefact(layers.read, layers.steer), rules())
    with traced(subject.model) as plain:
        tokens = reference.generate(subject.model, ask.inputs, TOKENS)
    guarded = answered(subject, subject.encode([ask]), detector)
    kind = ask.request.offset_kind
    expect(
        guarded.tokens == tokens,
        f"a request of kind {kind!r} that passes gets {guarded.tokens[0]}, plain generation gives "
        f"{tokens[0]}",
    )
    pairs = list(zip(plain.logits, guarded.trace.logits, strict=False))
    expect(
        len(plain.logits) == len(guarded.trace.logits),
        f"the head ran {guarded.trace.heads} times, plainly {plain.heads} times",
    )
    apart = max((float((a - b).abs().max()) for a, b in pairs), default=0.0)
    same = all(torch.equal(a, b) for a, b in pairs)
    expect(same, f"logits of a request of kind {kind!r} that passes differ by {apart:.2e}")
    return apart


def prefill(subject: Subject) -> Figures:
    """An answer of n tokens takes n passes of the decoder and reads each picture once."""
    layers = subject.layers
    detector = subject.detector(subject.directions.artefact(layers.read, layers.steer), rules())
    asks = subject.pictures[:1] if subject.loaded.is_multimodal else subject.texts[:1]
    with traced(subject.model) as first:
        reference.generate(subject.model, asks[0].inputs, 1)
    guarded = answered(subject, subject.encode(asks), detector)
    count = len(guarded.tokens[0])
    expect(
        guarded.trace.passes == count,
        f"{count} tokens took {guarded.trace.passes} passes of the decoder",
    )
    more = {
        name: (first.outside[name], times)
        for name, times in guarded.trace.outside.items()
        if times != first.outside[name]
    }
    expect(not more, f"modules outside the decoder ran (plain first token, guarded): {_some(more)}")
    deep = max(guarded.trace.layers.values())
    expect(deep == count, f"a layer ran {deep} times for {count} tokens")
    return {
        "new_tokens": count,
        "decoder_passes": guarded.trace.passes,
        "vision_modules": len(guarded.trace.outside),
    }


def check_only(subject: Subject) -> Figures:
    """A verdict alone ends behind the last layer that it needs, without the head."""
    layers = subject.layers
    for steer, last in ((None, layers.read[-1]), (layers.steer, layers.steer)):
        artefact = subject.directions.artefact(layers.read, steer)
        _, trace = checked(
            subject, subject.encode(subject.texts[:1]), subject.detector(artefact, rules())
        )
        expect(trace.passes == 1, f"a verdict took {trace.passes} passes of the decoder")
        deeper = sorted(layer for layer in trace.layers if layer > last)
        expect(not deeper, f"layers {deeper} ran behind the last layer needed, {last}")
        expect(trace.heads == 0, f"the head ran {trace.heads} times for a verdict")
    return {"layers_run": layers.read[-1] + 1, "layers": layers.count}


def _some(found: dict[str, tuple[int, int]]) -> str:
    return ", ".join(f"{name} {pair}" for name, pair in list(found.items())[:3])
