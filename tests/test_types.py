from __future__ import annotations

import json
from dataclasses import replace
from typing import get_type_hints

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from PIL import Image

from guardrail.errors import GuardrailViolation
from guardrail.types import (
    Action,
    Clip,
    ImagePart,
    Message,
    Modality,
    Request,
    TextPart,
    Verdict,
    VideoPart,
    Where,
    Window,
)

VERDICT = Verdict(
    action=Action.PASS,
    would_be=Action.STEER,
    score=0.5,
    tau_steer=0.4,
    tau_flag=0.9,
    layers=(1, 2),
    modality=Modality.TEXT,
    artefact_id="guard-1",
    mode="shadow",
)
SECRET = "pick a lock"
WHERE = Where(
    reading="window",
    message=1,
    role="user",
    part=0,
    kind=Modality.TEXT,
    start=18,
    stop=26,
    words=SECRET,
)
WINDOW = Window(number=1, of=3, start_s=0.0, end_s=2.0, frames=4)


@pytest.mark.parametrize(
    "verdict",
    [
        VERDICT,
        replace(VERDICT, window=WINDOW),
        replace(VERDICT, where=WHERE),
        replace(VERDICT, score=None, reason="detector_failed"),
    ],
)
def test_a_verdict_written_down_is_read_again(verdict):
    assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict()))) == verdict


@pytest.mark.parametrize(
    ("where", "words"),
    [
        (Where(reading="last", message=2, role="user"), "at the end of message 3 (user)"),
        (
            Where(reading="turn", message=0, role="tool"),
            "at the end of message 1 (tool), an earlier turn",
        ),
        (
            Where(
                reading="window",
                message=1,
                role="user",
                part=0,
                kind=Modality.IMAGE,
                start=30,
                stop=38,
                slots=(2, 9, 16),
            ),
            "in message 2 (user), image positions 3 to 10 of 16",
        ),
        (
            Where(reading="window", message=1, role="user", start=4, stop=9, words="build a bomb"),
            "in message 2 (user), tokens 5 to 9",
        ),
    ],
)
def test_where_a_score_is_from_is_told_without_anybodys_words(where, words):
    assert str(where) == words
    verdict = replace(VERDICT, where=where)
    assert f"text {words}, reason score" in verdict.summary()
    assert Where.from_dict(json.loads(json.dumps(where.to_dict()))) == where
    assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict()))) == verdict


def test_a_verdict_of_before_there_was_a_where_is_read_still():
    plain = VERDICT.to_dict()
    del plain["where"]
    assert Verdict.from_dict(plain) == VERDICT


FINITE = st.floats(allow_nan=False, allow_infinity=False)
# One strategy a type, not a field: a new field is tested as soon as it is there.
OF_TYPE = {float: FINITE, float | None: st.none() | FINITE}
OF_WINDOW = {
    name: OF_TYPE.get(kind, st.from_type(kind)) for name, kind in get_type_hints(Window).items()
}
OF_TYPE[Window | None] = st.none() | st.builds(Window, **OF_WINDOW)
OF_VERDICT = {
    name: OF_TYPE.get(kind, st.from_type(kind)) for name, kind in get_type_hints(Verdict).items()
} | {"reason": st.sampled_from(["score", "detector_failed"])}


@given(st.fixed_dictionaries(OF_VERDICT))
def test_every_verdict_is_read_again_whole(facts):
    assume(facts["score"] is not None or facts["reason"] != "score")
    verdict = Verdict(**facts)
    assert Verdict.from_dict(verdict.to_dict()) == verdict
    assert Verdict.from_dict(json.loads(json.dumps(verdict.to_dict()))) == verdict


TEXT, PICTURE = TextPart("hello"), ImagePart(Image.new("RGB", (2, 2)))
CLIP = VideoPart(Clip((PICTURE.image,), (0.0,)))


def request(*parts):
    return Request(tuple(Message(role="user", parts=(part,)) for part in parts))


@pytest.mark.parametrize(
    ("parts", "modality", "offset_kind"),
    [
        ((), "text", "text"),
        ((TEXT, TEXT), "text", "text"),
        ((PICTURE, TEXT), "image", "image"),
        ((PICTURE, TEXT, PICTURE), "image", "images"),
        ((CLIP, PICTURE, PICTURE, TEXT), "video", "video"),
    ],
)
def test_a_request_is_what_its_richest_part_is(parts, modality, offset_kind):
    assert (request(*parts).modality, request(*parts).offset_kind) == (modality, offset_kind)


@pytest.mark.parametrize("told", ["modality", "offset_kind"])
@pytest.mark.parametrize("beside", [TEXT, PICTURE, CLIP])
def test_a_part_of_an_unknown_kind_is_never_taken_for_another(told, beside):
    with pytest.raises(TypeError, match="a bytes is no part of a request"):
        getattr(request(beside, b"sound"), told)


@pytest.mark.parametrize(
    ("where", "said"),
    [
        (Where(reading="last", message=2, role="tool"), "at the end of message 3 (tool)"),
        (
            Where(reading="turn", message=0, role="user"),
            "at the end of message 1 (user), an earlier turn",
        ),
        (WHERE, "in message 2 (user), tokens 19 to 26"),
        (
            replace(WHERE, kind=Modality.IMAGE, slots=(0, 7, 64)),
            "in message 2 (user), image positions 1 to 8 of 64",
        ),
        (replace(WHERE, start=None, stop=None), "in message 2 (user)"),
    ],
)
def test_places_are_told_as_people_count_them(where, said):
    assert str(where) == said
    assert f" text {said}, reason" in replace(VERDICT, where=where).summary()


def test_the_words_of_a_window_are_told_to_who_asks_for_them_alone():
    verdict = replace(VERDICT, where=WHERE)
    assert verdict.to_dict()["where"]["words"] == SECRET
    without = verdict.to_dict(words=False)
    assert without["where"] == {k: v for k, v in WHERE.to_dict().items() if k != "words"}
    assert Verdict.from_dict(without) == replace(verdict, where=replace(WHERE, words=""))
    told = (without, verdict.summary(), verdict, WHERE, GuardrailViolation(verdict))
    assert not [each for each in told if SECRET in f"{each} {each!r}"]
