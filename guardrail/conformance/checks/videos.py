"""Videos: shown to the model as videos, or as their frames."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from guardrail.conformance import reference
from guardrail.conformance.answers import answered, checked, score_of
from guardrail.conformance.checks.reading import UNSEEN
from guardrail.conformance.outcomes import DoesNotApplyError, Figures, expect
from guardrail.conformance.plain import placed
from guardrail.conformance.prompts import as_pictures, video_request
from guardrail.conformance.subject import TOKENS, rules
from guardrail.types import Action, Modality

if TYPE_CHECKING:
    from guardrail.conformance.subject import Ask, Subject
    from guardrail.types import Request


def video(subject: Subject) -> Figures:
    """A video is scored by what the model is shown of it, as a slow pass over that says."""
    if not subject.loaded.is_multimodal:
        raise DoesNotApplyError("the model's processor takes no pictures")
    artefact = subject.directions.artefact(subject.layers.read)
    request = video_request()
    encoded = subject.encoder.encode([request])
    expect(encoded.kinds == ("video",), f"a video is taken for {encoded.kinds}")
    shown = "native" if subject.encoder.video_as == "video" else "frames"
    ask, other = (_asked(subject, one, shown) for one in (request, video_request(seed=100)))
    _expect_inputs(placed(subject.loaded, encoded.inputs), ask.inputs)
    wanted = reference.score(artefact, ask.states, "video")
    bound = subject.tolerance(artefact, ask.states)
    policy = rules(flag=wanted - 2 * bound, only=Modality.VIDEO)
    (ruling,), _ = checked(subject, encoded, subject.detector(artefact, policy))
    apart = abs(score_of(ruling) - wanted)
    expect(apart <= bound, f"the score is {apart:.2e} from the reference (bound {bound:.2e})")
    expect(ruling.action is Action.FLAG, "a video is not held against the thresholds of videos")
    effect = subject.effect(artefact, ask, other)
    answers = answered(subject, encoded, subject.detector(artefact, rules()))
    plain = reference.generate(subject.model, ask.inputs, TOKENS)
    expect(answers.tokens == plain, f"it gives {answers.tokens}, plainly {plain}")
    figures: Figures = {"shown": shown, "score_from_reference": apart, "frames": 4}
    if effect <= 1:
        figures["note"] = UNSEEN.format("video")
    return figures | {"effect": effect}


def _asked(subject: Subject, request: Request, shown: str) -> Ask:
    """The slow reference of a video, with the media in the form in which they are shown."""
    asked = subject.asked(request if shown == "native" else as_pictures(request))
    return replace(asked, request=request)


def _expect_inputs(found: dict[str, Any], plain: dict[str, Any]) -> None:
    """The model is given what plain transformers makes of all frames, in order, at their times."""
    expect(set(found) == set(plain), f"the inputs are {sorted(found)}, plainly {sorted(plain)}")
    for name, value in plain.items():
        same = torch.equal(found[name], value) if isinstance(value, torch.Tensor) else True
        expect(same, f"the input {name!r} of a video is not what plain transformers makes of it")
