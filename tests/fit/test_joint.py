"""The joint score: a fit's own is what a guard gives the same requests, and how it is laid out.

Whatever is chosen offline, thresholds above all, is chosen on these scores.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from guardrail.drift.fitted import Fitted
from guardrail.fit.collect import Collector
from guardrail.fit.dataset import load_contrast
from guardrail.fit.forms import readable, samples
from guardrail.fit.joint import highest_windows
from guardrail.fit.prompts import Sample, clip_request, drawn, meaningless_clips
from guardrail.fit.readings import FormResiduals
from guardrail.guard import Guard
from guardrail.model.load import wrap_model
from guardrail.testing import tiny_artefact
from guardrail.types import ImagePart, Message, Request, TextPart

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guardrail.artefact import Artefact
    from guardrail.fit.collect import Read
    from guardrail.model.load import LoadedModel

ONE_OF_A_KIND = {"fit": 1, "select": 1, "calibrate": 0}


def form_of(requests: Sequence[Request], reads: Sequence[Read]) -> FormResiduals:
    last = [Sample(i, "made up", r, len(r.messages) - 1) for i, r in enumerate(requests)]
    return FormResiduals(last, reads, ["select"] * len(last), ["unsafe"] * len(last))


def said(role: str, text: str, *pictures: Any) -> Message:
    return Message(role=role, parts=(*map(ImagePart, pictures), TextPart(text)))


def in_every_form(loaded: LoadedModel) -> list[Request]:
    contrast = load_contrast()
    collect = Collector(loaded)
    forms = readable(collect.encoder)
    found = [s.request for form in forms for s in samples(contrast, form, ONE_OF_A_KIND)[::3]]
    if loaded.is_multimodal:
        found += [sample.request for sample in drawn(contrast, 1)]
        found += [clip_request("what is this?", clip) for clip in meaningless_clips(1)]
    return found


def chats(picture: Callable[..., Any] | None) -> list[Request]:
    """Chats whose earlier turns are of another kind than the last one."""
    ask, answer = "tell me about the red dog", "I can make a picture"
    shown = ([], [], []) if picture is None else ([], [picture()], [picture(1), picture(2)])
    return [
        Request(
            (
                said("user", ask, *first),
                said("assistant", answer),
                said("user", "what is the user?", *then),
                said("assistant", "it is red"),
                said("user", "please help me with that"),
            )
        )
        for first in shown
        for then in shown
    ]


def evenly_matched(artefact: Artefact, reads: Sequence[Read]) -> Artefact:
    """With windows that are highest about as often as the ends of turns are."""
    joint, windows = Fitted.of(artefact).joint, artefact.header.windows
    assert joint.windows is not None
    ends = joint.readout.scores(torch.stack([read.last for read in reads]))
    apart = highest_windows(joint.windows, reads) - ends
    zero = windows.zero + windows.gap * float(apart.median())
    return artefact.revised(windows=windows.model_copy(update={"zero": zero}))


@pytest.mark.parametrize("family", ["llama", "llava", "qwen2_5_vl", "gemma3"])
def test_offline_scores_are_those_of_a_guard_with_the_same_artefact(
    tiny_of: Any, picture: Any, family: str
) -> None:
    made = tiny_of(family)
    loaded = wrap_model(made.model, made.processor)
    requests = in_every_form(loaded) + chats(picture if loaded.is_multimodal else None)
    reads = Collector(loaded, batch_size=4).read(requests, "")
    artefact = evenly_matched(tiny_artefact(made.model, made.processor), reads)
    joint = Fitted.of(artefact).joint
    offline = joint.scores(form_of(requests, reads)).tolist()
    with Guard(loaded, artefact) as guard:
        verdicts = guard.check_batch(requests)
    assert offline == pytest.approx([v.score for v in verdicts], abs=2e-3)
    assert {v.where.reading for v in verdicts if v.where} == {"last", "turn", "window"}


@pytest.mark.parametrize("windows", [True, False])
def test_an_earlier_turn_counts_as_what_it_was_when_it_was_the_last(
    llava: Any, picture: Any, windows: bool
) -> None:
    """Its kind of pictures, too: those that came later are none of its own."""
    loaded = wrap_model(llava.model, llava.processor)
    joint = Fitted.of(tiny_artefact(llava.model, llava.processor, windows=windows)).joint
    collect = Collector(loaded)
    for chat in chats(picture):
        (read,) = collect.read([chat], "")
        alone = [Request(chat.messages[:n]) for n in (1, 3)]
        turns = collect.read(alone, "")
        assert read.kinds == tuple(request.offset_kind for request in alone)
        torch.testing.assert_close(
            joint.readout.scores(read.headers, read.kinds),
            joint.readout.scores(
                torch.stack([turn.last for turn in turns]), [r.offset_kind for r in alone]
            ),
            atol=1e-4,
            rtol=1e-4,
        )
