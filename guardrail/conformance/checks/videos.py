"""Videos: shown to the model as videos, or as their frames."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from guardrail.conformance import reference
from guardrail.conformance.answers import answered, checked, score_of
from guardrail.conformance.outcomes import DoesNotApplyError, Figures, expect
from guardrail.conformance.prompts import as_pictures, video_request
from guardrail.conformance.subject import TOKENS, rules

if TYPE_CHECKING:
    from guardrail.conformance.subject import Subject
    from guardrail.model.inputs import Encoded
    from guardrail.types import Request


def video(subject: Subject) -> Figures:
    """A video is scored by what the model is shown of it, as a slow pass over that says."""
    if not subject.loaded.is_multimodal:
        raise DoesNotApplyError("the model's processor takes no pictures")
    artefact = subject.directions.artefact(subject.layers.read)
    detector = subject.detector(artefact, rules())
    request, other = video_request(), video_request(seed=100)
    encoded = subject.encoder.encode([request])
    expect(encoded.kinds == ("video",), f"a video is taken for {encoded.kinds}")
    shown = "frames" if _as_frames(subject, request, encoded) else "native"
    inputs = reference.placed(subject.loaded, encoded.inputs)
    states = reference.residuals(subject.model, inputs)
    rulings, _ = checked(subject, encoded, detector)
    wanted, bound = reference.score(artefact, states, "video"), subject.tolerance(artefact, states)
    apart = abs(score_of(rulings[0]) - wanted)
    expect(apart <= bound, f"the score is {apart:.2e} from the reference (bound {bound:.2e})")
    changed = reference.residuals(
        subject.model, reference.placed(subject.loaded, subject.encoder.encode([other]).inputs)
    )
    seen = float((changed - states).norm() / states.norm())
    expect(seen > subject.relative, "another video changes nothing: the model was not shown it")
    answers = answered(subject, encoded, detector)
    plain = reference.generate(subject.model, inputs, TOKENS)
    expect(answers.tokens == plain, f"it gives {answers.tokens}, plainly {plain}")
    return {"shown": shown, "score_from_reference": apart, "frames": 4, "effect": seen}


def _as_frames(subject: Subject, request: Request, encoded: Encoded) -> bool:
    """Whether the frames as pictures give the very same inputs."""
    try:
        frames = subject.encoder.encode([as_pictures(request)]).inputs
    except Exception:  # a border: a processor that takes no four pictures, whatever it raises
        return False
    return set(frames) == set(encoded.inputs) and all(
        torch.equal(value, encoded.inputs[name])
        for name, value in frames.items()
        if isinstance(value, torch.Tensor)
    )
