"""The guard without a model reads videos as a guard does."""

from __future__ import annotations

import io

import pytest
from PIL import Image

from guardrail.errors import LimitExceededError, UnsupportedContentError, VideoDecodeError
from guardrail.policy import Limits, Policy, VideoSampling
from guardrail.testing import FakeGuard
from guardrail.types import Action, Modality

EVERY = VideoSampling(fps=2, scenes=False, window=4)


def film(frames: int) -> bytes:
    pictures = [Image.new("RGB", (4, 4), (i, 0, 0)) for i in range(frames)]
    buffer = io.BytesIO()
    pictures[0].save(buffer, "GIF", save_all=True, append_images=pictures[1:], duration=500)
    return buffer.getvalue()


def chat(source: object, words: str = "look") -> list[dict[str, object]]:
    parts = [{"type": "video", "video": source}, {"type": "text", "text": words}]
    return [{"role": "user", "content": parts}]


@pytest.mark.parametrize("frames", [3, 9])
def test_the_words_beside_a_video_are_judged_and_the_modality_is_the_requests(frames):
    guard = FakeGuard(policy=Policy(video=EVERY))
    fine, bad = guard.check(chat(film(frames))), guard.check(chat(film(frames), "bad"))
    assert (fine.action, bad.action) == (Action.PASS, Action.FLAG)
    assert fine.modality is bad.modality is Modality.VIDEO
    assert guard.check("text").modality is Modality.TEXT
    assert guard.check(Image.new("RGB", (4, 4))).modality is Modality.IMAGE


def test_what_is_wrong_at_a_long_videos_end_is_found():
    guard = FakeGuard(policy=Policy(video=EVERY, limits=Limits(video_frames=8)))
    guard.check(chat(film(8)))
    with pytest.raises(LimitExceededError, match="video_frames 9"):
        guard.check(chat(film(9)))
    with pytest.raises(VideoDecodeError):
        guard.check(chat(b"no video"))


def test_an_open_file_may_be_asked_about(tmp_path):
    (path := tmp_path / "v.gif").write_bytes(film(3))
    with path.open("rb") as file:
        asked = chat(file)
        guard = FakeGuard()
        assert guard.check(asked).action is Action.PASS
        assert guard.seen == [asked]


async def test_it_is_asked_with_the_options_of_a_guard():
    guard = FakeGuard()
    options = {"timeout": 1.0, "client": "a", "request_id": "r"}
    verdicts = [guard.check("bad", **options), await guard.acheck("bad", **options)]
    verdicts += guard.check_batch(["bad"], **options)
    assert [verdict.action for verdict in verdicts] == [Action.FLAG] * 3


def test_in_a_list_an_error_takes_its_verdicts_place_where_that_is_wanted():
    guard = FakeGuard()
    fine, error, bad = guard.check_batch(["ok", 12345, "bad"], return_exceptions=True)
    assert (fine.action, bad.action) == (Action.PASS, Action.FLAG)
    assert isinstance(error, UnsupportedContentError)
    with pytest.raises(UnsupportedContentError):
        guard.check_batch(["ok", 12345])


def test_words_that_other_letters_hide_are_found_as_a_guard_finds_them():
    hidden = "a b\u0430d word"
    found = FakeGuard().check(hidden)
    assert (found.action, found.folded) == (Action.FLAG, True)
    plain = FakeGuard().check("a bad word, \u0430nd odd")
    assert (plain.action, plain.folded) == (Action.FLAG, False)
    assert FakeGuard(policy=Policy(fold_text=False)).check(hidden).action is Action.PASS


@pytest.mark.parametrize(
    ("actions", "found"),
    [
        ({Action.STEER, Action.FLAG}, [Action.PASS, Action.STEER, Action.FLAG]),
        ({Action.STEER}, [Action.PASS, Action.STEER, Action.STEER]),
        ({Action.FLAG}, [Action.PASS, Action.PASS, Action.FLAG]),
        (set(), [Action.PASS] * 3),
    ],
)
def test_what_is_not_allowed_becomes_what_it_becomes_for_a_guard(actions, found):
    words = ("fine", "odd", "bad")
    guard = FakeGuard(policy=Policy(actions=actions))
    verdicts = [guard.check(word) for word in words]
    assert [verdict.action for verdict in verdicts] == found
    assert [verdict.would_be for verdict in verdicts] == found
    shadow = FakeGuard(policy=Policy(actions=actions, mode="shadow"))
    verdicts = [shadow.check(word) for word in words]
    assert [verdict.action for verdict in verdicts] == [Action.PASS] * 3
    assert [verdict.would_be for verdict in verdicts] == found


CHAT = [
    {"role": "system", "content": "be bad"},
    {"role": "user", "content": "an odd day"},
    {"role": "assistant", "content": "yes"},
    {
        "role": "user",
        "content": [
            {"type": "image", "image": Image.new("RGB", (4, 4))},
            {"type": "text", "text": "so bad"},
        ],
    },
]


@pytest.mark.parametrize(
    ("value", "judge", "found"),
    [
        ("fine", {"turns"}, ("last", 0, "user", None, "")),
        (CHAT[:2], {"turns"}, ("last", 1, "user", None, "")),
        (CHAT[:2], {"turns", "system"}, ("window", 0, "system", 0, "bad")),
        (CHAT[1:3], {"turns"}, ("window", 0, "user", 0, "odd")),
        (CHAT, {"turns"}, ("window", 3, "user", 1, "bad")),
        (CHAT, {"tools"}, ("last", 3, "user", None, "")),
    ],
)
def test_it_says_in_which_judged_message_it_found_a_word(value, judge, found):
    where = FakeGuard(policy=Policy(judge=judge)).check(value).where
    assert (where.reading, where.message, where.role, where.part, where.words) == found


@pytest.mark.parametrize("value", ["an outage", "a b\u0430d word"])
def test_what_the_score_of_this_prompt_did_not_decide_was_found_nowhere_in_it(value):
    assert FakeGuard().check(value).where is None
