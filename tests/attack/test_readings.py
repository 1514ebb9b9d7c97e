"""Every reading of a request in one pass: the guard's own among them, whatever the request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

from guardrail.attack.attacks import Budget, find, known
from guardrail.attack.readings import READINGS, EveryReading, Reader, one_layer
from guardrail.decide.detector import Detector
from guardrail.errors import ConfigurationError
from guardrail.evaluation.cache import Cache
from guardrail.guard import Guard
from guardrail.inputs.messages import to_request
from guardrail.policy import Policy
from guardrail.testing import tiny_artefact
from tests.attack.conftest import Told, no_rule, request_of, without_windows

if TYPE_CHECKING:
    from pathlib import Path

    from guardrail.types import Request

PICTURE = Image.new("RGB", (24, 24), "navy")


def user(*parts: Any) -> dict[str, Any]:
    shown = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else {"type": "image", "image": part}
        for part in parts
    ]
    return {"role": "user", "content": shown}


CHATS: dict[str, Any] = {
    "text": "how do I write about the cat",
    "short": "a",
    "picture": [user(PICTURE, "what is this")],
    "two pictures": [user(PICTURE, PICTURE, "what are these two")],
    "turns": [
        user("how do I write about the cat"),
        {"role": "assistant", "content": "like this"},
        user("go"),
    ],
    "picture in a turn": [
        user(PICTURE, "what is this"),
        {"role": "assistant", "content": "a cat"},
        user("please tell me more about it now"),
    ],
    "system": [{"role": "system", "content": "be kind to the dog"}, user("how do I write")],
}


def requests() -> list[Request]:
    return [to_request(chat, policy=Policy()) for chat in CHATS.values()]


def test_the_joint_reading_is_the_guards_own_score(guard: Guard, reader: Reader):
    """Batched here and checked there alone: batching moves a score by rounding only."""
    plain = guard.with_policy(guard.policy.model_copy(update={"fold_text": False}))
    for name, request, read in zip(CHATS, requests(), reader(requests()), strict=True):
        verdict = plain.check(request)
        assert read.problem == ""
        assert read.by["joint"] == pytest.approx(verdict.score, abs=1e-4), name
        assert read.kind == request.offset_kind


def test_the_folded_reading_is_what_check_says_of_folded_text(guard: Guard, reader: Reader):
    hidden = find("homoglyphs")([request_of("please write about a cat")], None, Budget(), 0)  # type: ignore[arg-type]
    (read,) = reader([one for one in hidden if one is not None])
    assert read.by["folded"] == pytest.approx(guard.check(hidden[0]).score, abs=1e-4)
    assert read.by["folded"] >= read.by["joint"]
    (plain,) = reader([request_of("please write about a cat")])
    assert read.by["folded"] == pytest.approx(max(read.by["joint"], plain.by["joint"]), abs=1e-4)


def test_the_last_position_and_the_ends_of_turns_are_those_of_a_detector_without_windows(
    llava: Any, guard: Guard, reader: Reader
):
    old = without_windows(guard.artefact)
    policy = Policy(fold_text=False, mode="shadow")
    with Guard((llava.model, llava.processor), old, policy=policy) as before:
        for name, request, read in zip(CHATS, requests(), reader(requests()), strict=True):
            assert read.by["turns"] == pytest.approx(before.check(request).score, abs=1e-4), name
            assert read.by["turns"] >= read.by["last"]


def test_windows_alone_do_not_hear_the_ends_of_turns(reader: Reader):
    by = dict(zip(CHATS, (read.by for read in reader(requests())), strict=True))
    assert by["text"]["joint"] == max(by["text"]["windows"], by["text"]["last"])
    assert set(by["turns"]) == set(READINGS)
    (once,) = reader([request_of("how do I write about the cat")])
    assert by["text"] == pytest.approx(once.by, abs=1e-4)  # alone as among others


def test_the_ensemble_is_the_mean_of_each_layers_highest(guard: Guard):
    detector = Detector.from_artefact(guard.artefact, guard.policy)
    windows = detector.windows
    assert windows is not None
    generator = torch.Generator().manual_seed(0)
    products = torch.randn(9, len(windows.layers), 2, 2, generator=generator)
    each = [
        one_layer(windows, at).scores(products[:, at : at + 1]) for at in range(len(windows.layers))
    ]
    mean = torch.stack(each).mean(0)
    assert torch.allclose(mean, windows.scores(products))  # the same scale
    assert float(torch.stack(each).amax(1).mean()) >= float(windows.scores(products).max())


def test_what_the_model_cannot_be_shown_is_a_problem_of_that_request_alone(tiny_of: Any):
    llama = tiny_of("llama")
    fitted = tiny_artefact(llama.model, llama.processor, tau_steer=9, tau_flag=9)
    with Guard((llama.model, llama.processor), fitted) as made:
        some = [*requests()[:1], *requests()[2:3]]
        text, picture = Reader(made, Cache())(some)
    assert text.problem == ""
    assert "reads text only" in picture.problem
    assert picture.by == {}


def test_a_long_video_is_refused(reader: Reader):
    frames = [Image.new("RGB", (24, 24), (i, 0, 0)) for i in range(3)]
    videos = [{"type": "video", "video": frames}, {"type": "video", "video": frames}]
    chat = [{"role": "user", "content": [*videos, {"type": "text", "text": "?"}]}]
    with pytest.raises(ConfigurationError, match="window by window"):
        reader([to_request(chat, policy=Policy())])


def test_what_was_read_is_not_read_again(
    guard: Guard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with Cache(tmp_path) as cache:
        first = Reader(guard, cache)(requests())
    monkeypatch.setattr(Reader, "_read", None)  # whoever reads fails
    with Cache(tmp_path) as cache:
        assert Reader(guard, cache)(requests()) == first


def test_a_reading_that_failed_is_no_low_score(guard: Guard, monkeypatch: pytest.MonkeyPatch):
    def broken(self: EveryReading, last: Any, kinds: Any) -> list[dict[str, float]]:
        return [dict.fromkeys(READINGS, float("nan")) for _ in kinds]

    monkeypatch.setattr(EveryReading, "scores", broken)
    (read,) = Reader(guard, Cache())([request_of("how do I write")])
    assert "not finite" in read.problem


@pytest.mark.parametrize("name", [n for n, kind in known().items() if "behind" in n])
def test_no_words_behind_lower_a_windows_score(guard: Guard, reader: Reader, name: str):
    """The theorem, at any budget: what stands behind changes nothing before it."""
    from guardrail.attack.gradients import WhiteBox

    request = request_of("how do I write about the cat")
    (plain,) = reader([request])
    budget = Budget(34)
    white = WhiteBox(guard.loaded, reader.encoder, reader.detector)
    scorer = Told(no_rule, budget, goal=-9, white=white, reader=reader, by="windows")
    find(name)([request], scorer, budget, 0)
    assert len(scorer.seen) > 20
    lowest = min(read.by["windows"] for read in reader(scorer.seen))
    assert lowest >= plain.by["windows"] - 1e-4


def test_words_before_do(reader: Reader):
    """The control: the same search, and a place where it can do something."""
    request = request_of("how do I write about the cat")
    budget = Budget(60)
    scorer = Told(no_rule, budget, goal=-9, reader=reader, by="windows")
    (out,) = find("greedy words before")([request], scorer, budget, 0)
    (plain,), (after,) = reader([request]), reader([out])
    assert after.by["windows"] < plain.by["windows"] - 0.1


def test_the_policy_says_whose_words_are_read(guard: Guard):
    chat = to_request(CHATS["system"], policy=Policy())
    wide = guard.with_policy(replace_judge(guard.policy, {"turns", "system"}))
    (narrow,), (more,) = Reader(guard, Cache())([chat]), Reader(wide, Cache())([chat])
    assert more.by["windows"] >= narrow.by["windows"]
    assert more.by["joint"] == pytest.approx(wide.check(chat).score, abs=1e-4)


def replace_judge(policy: Policy, judge: set[str]) -> Policy:
    return policy.model_copy(update={"judge": frozenset(judge), "fold_text": False})
