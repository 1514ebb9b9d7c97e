"""Layers are the right ones and run once; text alone is read or refused; a verdict is one pass."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import torch

from guardrail.conformance import checks, reference
from guardrail.conformance.reference import WrongResultError, expect, first_line
from guardrail.conformance.subject import rules
from guardrail.errors import GuardrailError
from guardrail.inputs.messages import to_request
from guardrail.model.decoder import decoder_layers, self_attention_layers
from guardrail.model.generate import last_residuals
from tests.conformance.counting import counted, seen_at

if TYPE_CHECKING:
    from guardrail.conformance.checks import Figures
    from guardrail.conformance.subject import Ask, Subject


def layers(subject: Subject) -> Figures:
    """Each layer runs once in a prefill, in the order of `hidden_states`, and is what is read."""
    asks, count = subject.texts[:1], subject.loaded.layer_count
    runs: tuple[int, ...] = self_attention_layers(subject.model)
    _each_once(subject, asks[0], set(runs))
    if subject.loaded.is_multimodal:
        asks, runs = subject.pictures[:1], tuple(range(count))
        _each_once(subject, asks[0], set(runs))
    read = last_residuals(subject.loaded, subject.encode(asks), runs)[0].double()
    inner = [(number, layer) for number, layer in enumerate(runs) if layer != runs[-1]]
    apart = max(float((read[n] - asks[0].states[layer]).abs().max()) for n, layer in inner)
    bound = subject.relative * float(asks[0].states.norm(dim=-1).max())
    expect(
        apart <= bound,
        f"what is read behind a layer is {apart:.2e} from `hidden_states` (bound {bound:.2e})",
    )
    return {"layers": count, "largest_difference": apart}


@torch.no_grad()
def _each_once(subject: Subject, ask: Ask, expected: set[int]) -> None:
    stack, read = decoder_layers(subject.model), subject.read[-1]
    with counted(subject.model) as counts, seen_at(stack[read]) as outputs:
        states = subject.model(
            **ask.inputs, output_hidden_states=True, use_cache=False
        ).hidden_states
    expect(
        counts.layers == Counter(expected),
        f"layers ran {dict(sorted(counts.layers.items()))} times, wanted once each of "
        f"{sorted(expected)}",
    )
    number = reference.layers_of(subject.model, len(states) - 1).index(read)
    expect(
        torch.equal(outputs[0], states[number + 1]),
        "the layers found are not those that `hidden_states` lists",
    )


def score(subject: Subject) -> Figures:
    """What the model's own processor does not take is refused by the guard, clearly."""
    figures = checks.score(subject)
    if subject.text_trouble is not None:
        try:
            subject.encoder.encode([to_request("Hello", policy=rules())])
        except GuardrailError:
            return figures
        except Exception as error:
            raise WrongResultError(f"text alone is no clear error: {first_line(error)}") from error
        raise WrongResultError("the guard takes text alone, the model's own processor does not")
    return figures


def prefill(subject: Subject) -> Figures:
    """An answer of n tokens takes n passes of the decoder and reads each picture once."""
    artefact = subject.artefact(None, subject.steer)
    asks = subject.pictures[:1] if subject.loaded.is_multimodal else subject.texts[:1]
    with counted(subject.model) as first:
        reference.generate(subject.model, asks[0].inputs, 1)
    with counted(subject.model) as guarded:
        (row,) = subject.answers(subject.encode(asks), artefact, rules())
    count = len(row.token_ids)
    expect(guarded.passes == count, f"{count} tokens took {guarded.passes} passes of the decoder")
    more = {
        name: (first.outside[name], times)
        for name, times in guarded.outside.items()
        if times != first.outside[name]
    }
    some = list(more.items())[:3]
    expect(not more, f"modules outside the decoder ran (plain first token, guarded): {some}")
    deep = max(guarded.layers.values())
    expect(deep == count, f"a layer ran {deep} times for {count} tokens")
    return {
        "new_tokens": count,
        "decoder_passes": guarded.passes,
        "vision_modules": len(guarded.outside),
    }


def check_only(subject: Subject) -> Figures:
    """A verdict alone ends behind the last layer that it needs, without the head."""
    for steer, last in ((None, subject.read[-1]), (subject.steer, subject.steer)):
        artefact = subject.artefact(None, steer)
        with counted(subject.model) as counts:
            subject.rulings(subject.encode(subject.texts[:1]), artefact, rules())
        expect(counts.passes == 1, f"a verdict took {counts.passes} passes of the decoder")
        deeper = sorted(layer for layer in counts.layers if layer > last)
        expect(not deeper, f"layers {deeper} ran behind the last layer needed, {last}")
        expect(counts.heads == 0, f"the head ran {counts.heads} times for a verdict")
    return {"layers_run": subject.read[-1] + 1, "layers": subject.loaded.layer_count}
