from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

from guardrail.decide.reading import NOTHING, Found
from guardrail.errors import DetectorError, UnsupportedContentError
from guardrail.evaluation.scores import (
    Read,
    Reader,
    Scorer,
    answered_request,
    packed,
    random_directions,
    unpacked,
)
from guardrail.guard import Guard
from guardrail.inputs.messages import to_request
from guardrail.model.encode import Encoder
from guardrail.model.load import wrap_model
from guardrail.online.core import require_readable
from guardrail.online.video_scan import judged_requests
from guardrail.policy import Policy, VideoSampling
from guardrail.testing import tiny_artefact, tiny_model
from guardrail.types import Clip, Message, Request, TextPart, VideoPart, VideoStream, Where

if TYPE_CHECKING:
    from collections.abc import Iterator


WINDOW = Where(reading="window", message=0, role="user", part=0, kind="text", start=3, stop=5)
TURN = Where(reading="turn", message=0, role="user")


@pytest.fixture(scope="module")
def artefact():
    return tiny_artefact(*tiny_model("llava"))


def read_of(residuals, *found):
    """What was read of these rows, (L, d_model) or several of them; nothing beside, or `found`."""
    rows = residuals if residuals.ndim == 3 else residuals[None]
    return Read(rows, found or (NOTHING,) * len(rows))


def test_every_figure_is_a_projection_of_the_residuals(artefact):
    residuals = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    found = Scorer(artefact, Policy())(read_of(residuals), "image")
    tensors, layers = artefact.tensors, artefact.header.readout.layers
    parts = [
        (residuals[layer] @ tensors["readout_weight"][i] - tensors["readout_zero"][i])
        / tensors["readout_gap"][i]
        for i, layer in enumerate(layers)
    ]
    line = artefact.header.recentring["image"].score
    wanted = (float(sum(parts)) / len(parts) - line.intercept) / line.slope
    assert found.score == pytest.approx(wanted, abs=1e-5)
    assert found.reading == "last"
    along = (residuals * tensors["direction"]).sum(-1)
    assert torch.allclose(found.layers.float(), along, atol=1e-5)
    drawn = random_directions(tensors["readout_weight"])
    read = residuals[list(layers)].double()
    zero, gap = tensors["readout_zero"].double(), tensors["readout_gap"].double()
    wanted = (((drawn * read).sum(-1) - zero) / gap).mean(-1)
    assert torch.allclose(found.random, wanted, atol=1e-5)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_score_that_is_no_number_is_an_outage(artefact, value):
    residuals = torch.zeros(4, 32)
    residuals[artefact.header.readout.layers[0]] = value
    with pytest.raises(DetectorError, match="not finite"):
        Scorer(artefact, Policy())(read_of(residuals), "text")


def test_a_long_video_has_the_highest_of_its_windows_direction_by_direction(artefact):
    windows = torch.randn(5, 4, 32, generator=torch.Generator().manual_seed(3))
    scorer = Scorer(artefact, Policy())
    alone = [scorer(read_of(window), "video") for window in windows]
    found = scorer(read_of(windows), "video")
    assert found.score == pytest.approx(max(one.score for one in alone), abs=1e-9)
    for name in ("layers", "random"):
        stacked = torch.stack([getattr(one, name) for one in alone])
        assert torch.allclose(getattr(found, name), stacked.amax(0), atol=1e-9)
        assert len(set(stacked.argmax(0).tolist())) > 1  # not all of them in one window


def test_the_action_of_a_long_video_is_that_of_its_highest_window(artefact):
    windows = torch.randn(5, 4, 32, generator=torch.Generator().manual_seed(3))
    scores = [Scorer(artefact, Policy())(read_of(one), "video").score for one in windows]
    assert max(scores) > scores[-1]
    between = (max(scores) + sorted(scores)[-2]) / 2
    policy = Policy(thresholds={"video": {"steer": between, "flag": between}})
    assert Scorer(artefact, policy)(read_of(windows), "video").action == "flag"
    assert Scorer(artefact, policy)(read_of(windows[-1]), "video").action == "pass"


def test_a_window_without_a_score_is_an_outage_of_the_whole_video(artefact):
    windows = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(3))
    windows[0, artefact.header.readout.layers[0]] = float("nan")
    with pytest.raises(DetectorError, match="not finite"):
        Scorer(artefact, Policy())(read_of(windows), "video")


def test_the_highest_reading_is_the_score_and_named(artefact):
    residuals = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    scorer = Scorer(artefact, Policy())
    last = scorer(read_of(residuals), "text")
    assert last.reading == "last"
    for where in (WINDOW, TURN):
        below, above = (Found(last.score + by, where) for by in (-0.5, 0.5))
        assert scorer(read_of(residuals, below), "text").score == last.score
        assert scorer(read_of(residuals, below), "text").reading == "last"
        found = scorer(read_of(residuals, above), "text")
        assert (found.score, found.reading) == (last.score + 0.5, where.reading)
        assert torch.equal(found.layers, last.layers)
    with pytest.raises(DetectorError, match="not finite"):
        scorer(read_of(residuals, Found(float("nan"), None)), "text")


def test_the_reading_of_a_long_video_is_that_of_what_is_answered_or_none(artefact):
    windows = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(3))
    scorer = Scorer(artefact, Policy())
    within = scorer(read_of(windows, NOTHING, Found(50.0, WINDOW), NOTHING), "video")
    assert (within.score, within.reading) == (50.0, None)
    answered = scorer(read_of(windows, NOTHING, Found(50.0, WINDOW), Found(60.0, TURN)), "video")
    assert (answered.score, answered.reading) == (60.0, "turn")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [1, 3])
def test_what_was_read_is_kept_bit_for_bit_and_no_larger_than_need_be(dtype, rows):
    found = (Found(0.1 + 0.2, WINDOW), Found(-torch.inf, None), Found(1.5, TURN))[:rows]
    exact = Read(torch.randn(rows, 4, 32).to(dtype).float(), found)
    data = packed(exact, dtype)
    kept = unpacked(data, (4, 32))
    assert torch.equal(kept.residuals, exact.residuals)
    assert kept.found == found
    between = Read(exact.residuals + 1e-7, found)
    assert torch.equal(unpacked(packed(between, dtype), (4, 32)).residuals, between.residuals)
    if dtype != torch.float32:
        assert len(data) < len(packed(between, dtype))


def test_no_words_are_kept():
    where = Where(reading="window", message=0, role="user", words="pick a lock")
    assert b"lock" not in packed(Read(torch.zeros(1, 4, 32), (Found(1.0, where),)), torch.float32)


@pytest.mark.parametrize("data", [b"", b"none", b"shape", b"readings", b"where"])
def test_bytes_that_are_nothing_that_was_read_of_this_model_are_refused(data):
    from safetensors.torch import load, save

    kept = load(packed(read_of(torch.zeros(4, 32)), torch.float32))
    changed = {
        b"shape": {"residuals": torch.zeros(1, 3, 32)},
        b"readings": {"residuals": torch.zeros(2, 4, 32)},
        b"where": {"where": torch.tensor(list(b'[{"reading": 1}]'), dtype=torch.uint8)},
    }
    with pytest.raises(ValueError, match=r".+"):
        unpacked(save(kept | changed[data]) if data in changed else data, (4, 32))


SAMPLING = VideoSampling(window=2, answer_frames=3)


class Windows:
    """Windows of two frames, one frame a second; they count how often they were begun."""

    digest = "windows"

    def __init__(self, count: int, seed: int = 0) -> None:
        self.count, self.seed, self.begun = count, seed, 0

    def __iter__(self) -> Iterator[Clip]:
        self.begun += 1
        for start in range(0, 2 * self.count, 2):
            yield clip(start, start + 1, seed=self.seed)


def clip(*times: int, seed: int = 0) -> Clip:
    frames = [Image.new("RGB", (40, 40), (10 * time, 90 * seed, 0)) for time in times]
    return Clip(tuple(frames), tuple(map(float, times)))


def request(*videos: VideoPart | VideoStream) -> Request:
    return Request((Message(role="user", parts=(*videos, TextPart("what is this"))),))


def times_of(shown: Request) -> list[tuple[float, ...]]:
    return [video.clip.times for video in shown.videos if isinstance(video, VideoPart)]


def test_every_window_is_judged_alone_and_last_what_is_answered() -> None:
    asked = request(VideoStream(Windows(3)), VideoPart(clip(7)), VideoStream(Windows(2, seed=1)))
    judged = list(judged_requests(asked, 3))
    assert [(video, times_of(shown)) for shown, video in judged] == [
        (0, [(0, 1)]),
        (0, [(2, 3)]),
        (0, [(4, 5)]),
        (1, [(7,)]),
        (2, [(0, 1)]),
        (2, [(2, 3)]),
        (None, [(0, 2, 5), (7,), (0, 1, 3)]),
    ]
    assert all(shown.messages[0].parts[-1] == TextPart("what is this") for shown, _ in judged)


def test_a_request_of_one_window_is_judged_as_it_is() -> None:
    short = request(VideoPart(clip(0, 1)))
    assert list(judged_requests(short, 3)) == [(short, None)]
    assert answered_request(short, 3) is short
    assert not short.in_windows
    assert request(VideoPart(clip(0)), VideoStream(Windows(1))).in_windows


def test_what_is_answered_holds_no_stream() -> None:
    windows = Windows(4)
    shown = answered_request(request(VideoStream(windows)), 3)
    assert times_of(shown) == [(0, 4, 7)]
    assert windows.begun == 1


def reader_of(loaded: Any, artefact: Any, encoder: Any = None) -> Reader:
    detector = Scorer(artefact, Policy()).detector
    return Reader(loaded, encoder or Encoder(loaded), detector, batch_size=4)


def test_what_is_read_of_a_long_video_is_what_is_read_of_its_windows_alone(llava: Any) -> None:
    loaded = wrap_model(llava.model, llava.processor)
    read = reader_of(loaded, tiny_artefact(llava.model, llava.processor))
    asked = request(VideoStream(Windows(3)))
    found, short = read([asked, request(VideoPart(clip(3)))], SAMPLING)
    alone = [read([shown], SAMPLING)[0] for shown, _ in judged_requests(asked, 3)]
    rows = torch.cat([one.residuals for one in alone])
    torch.testing.assert_close(found.residuals, rows, atol=1e-5, rtol=1e-4)
    scores = [one.found[0].score for one in alone]
    assert [one.score for one in found.found] == pytest.approx(scores, abs=1e-4)
    assert short.residuals.shape == rows[:1].shape


def test_no_more_windows_are_decoded_at_a_time_than_go_into_a_batch(llava: Any) -> None:
    loaded, seen = wrap_model(llava.model, llava.processor), list[int]()

    class Counting(Encoder):
        def encode(self, requests: Any) -> Any:
            seen.append(len(requests))
            return super().encode(requests)

    artefact = tiny_artefact(llava.model, llava.processor)
    read = reader_of(loaded, artefact, Counting(loaded))
    (found,) = read([request(VideoStream(Windows(5)))], SAMPLING)
    assert seen == [2, 2, 2]
    assert len(found.residuals) == len(found.found) == 6


@pytest.mark.parametrize("windows", [True, False])
def test_scores_and_readings_are_those_of_the_guard(llava: Any, windows: bool) -> None:
    loaded = wrap_model(llava.model, llava.processor)
    artefact = tiny_artefact(llava.model, llava.processor, windows=windows)
    chats = [
        [
            {"role": "user", "content": f"{words} system"},
            {"role": "assistant", "content": "green tool"},
            {"role": "user", "content": "and the picture"},
        ]
        for words in ("red blue", "the user", "how about the dog", "please say image")
    ]
    values = [*chats, *(chat[:1] for chat in chats)]
    policy = Policy(fold_text=False)
    with Guard(loaded, artefact, policy=policy) as guard:
        verdicts = guard.check_batch(values)
    scorer = Scorer(artefact, policy)
    read = reader_of(loaded, artefact)([to_request(v, policy=policy) for v in values], SAMPLING)
    found = [scorer(one, "text") for one in read]
    wanted = [verdict.score for verdict in verdicts]
    assert [one.score for one in found] == pytest.approx(wanted, abs=1e-4)
    assert [one.reading for one in found] == [verdict.where.reading for verdict in verdicts]
    assert ({one.reading for one in found} == {"window"}) is windows


def test_a_video_needs_an_artefact_that_was_fitted_with_videos(llava: Any) -> None:
    old = tiny_artefact(llava.model, llava.processor, video=False)
    with pytest.raises(UnsupportedContentError, match=r"fitted without video.*fit again"):
        require_readable(request(VideoPart(clip(0))), old)
    require_readable(request(), old)
    require_readable(request(VideoPart(clip(0))), tiny_artefact(llava.model, llava.processor))
