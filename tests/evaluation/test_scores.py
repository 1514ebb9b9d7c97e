from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

from guardrail.errors import DetectorError, UnsupportedContentError
from guardrail.evaluation.scores import (
    Scorer,
    answered_request,
    packed,
    random_directions,
    residuals_of,
    unpacked,
)
from guardrail.fit.collect import Collector
from guardrail.model.load import wrap_model
from guardrail.online.engine import require_readable
from guardrail.online.video_scan import judged_requests
from guardrail.policy import Policy, VideoSampling
from guardrail.testing import tiny_artefact, tiny_model
from guardrail.types import Clip, Message, Request, TextPart, VideoPart, VideoStream

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def artefact():
    return tiny_artefact(*tiny_model("llava"))


def test_every_figure_is_a_projection_of_the_residuals(artefact):
    residuals = torch.randn(4, 32, generator=torch.Generator().manual_seed(1))
    found = Scorer(artefact, Policy())(residuals, "image")
    tensors, layers = artefact.tensors, artefact.header.readout.layers
    parts = [
        (
            residuals[layer] @ tensors["readout_weight"][i]
            - tensors["readout_offset_image"][i]
            - tensors["readout_zero"][i]
        )
        / tensors["readout_gap"][i]
        for i, layer in enumerate(layers)
    ]
    assert found.score == pytest.approx(float(sum(parts)) / len(parts), abs=1e-5)
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
        Scorer(artefact, Policy())(residuals, "text")


def test_a_long_video_has_the_highest_of_its_windows_direction_by_direction(artefact):
    windows = torch.randn(5, 4, 32, generator=torch.Generator().manual_seed(3))
    scorer = Scorer(artefact, Policy())
    alone = [scorer(window, "video") for window in windows]
    found = scorer(windows, "video")
    assert found.score == pytest.approx(max(one.score for one in alone), abs=1e-9)
    for name in ("layers", "random"):
        stacked = torch.stack([getattr(one, name) for one in alone])
        assert torch.allclose(getattr(found, name), stacked.amax(0), atol=1e-9)
        assert len(set(stacked.argmax(0).tolist())) > 1  # not all of them in one window


def test_the_action_of_a_long_video_is_that_of_its_highest_window(artefact):
    windows = torch.randn(5, 4, 32, generator=torch.Generator().manual_seed(3))
    scores = [Scorer(artefact, Policy())(window, "video").score for window in windows]
    assert max(scores) > scores[-1]
    between = (max(scores) + sorted(scores)[-2]) / 2
    policy = Policy(thresholds={"video": {"steer": between, "flag": between}})
    assert Scorer(artefact, policy)(windows, "video").action == "flag"
    assert Scorer(artefact, policy)(windows[-1], "video").action == "pass"


def test_a_window_without_a_score_is_an_outage_of_the_whole_video(artefact):
    windows = torch.randn(3, 4, 32, generator=torch.Generator().manual_seed(3))
    windows[0, artefact.header.readout.layers[0]] = float("nan")
    with pytest.raises(DetectorError, match="not finite"):
        Scorer(artefact, Policy())(windows, "video")


def test_windows_are_kept_like_other_residuals():
    windows = torch.randn(3, 4, 32)
    assert torch.equal(unpacked(packed(windows, torch.float32), (4, 32)), windows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_residuals_are_kept_bit_for_bit_and_no_larger_than_need_be(dtype):
    exact = torch.randn(4, 32).to(dtype).float()
    data = packed(exact, dtype)
    assert torch.equal(unpacked(data, (4, 32)), exact)
    between = exact + 1e-7
    assert torch.equal(unpacked(packed(between, dtype), (4, 32)), between)
    if dtype != torch.float32:
        assert len(data) < len(packed(between, dtype))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"none",
        packed(torch.zeros(3, 32), torch.float32),
        packed(torch.zeros(2, 3, 32), torch.float32),
        packed(torch.zeros(0, 4, 32), torch.float32),
        packed(torch.zeros(1, 1, 4, 32), torch.float32),
    ],
)
def test_bytes_that_are_no_residuals_of_this_model_are_refused(data):
    with pytest.raises(ValueError, match=r".+"):
        unpacked(data, (4, 32))


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


def test_residuals_of_a_long_video_are_those_of_its_windows_read_alone(llava: Any) -> None:
    collect = Collector(wrap_model(llava.model, llava.processor), batch_size=4)
    asked = request(VideoStream(Windows(3)), VideoPart(clip(7)))
    found = residuals_of(collect, [asked, request(VideoPart(clip(3)))], SAMPLING)
    alone = [collect([shown], "alone")[0] for shown, _ in judged_requests(asked, 3)]
    torch.testing.assert_close(found[0], torch.stack(alone), atol=1e-5, rtol=1e-4)
    (short,) = collect([request(VideoPart(clip(3)))], "alone")
    torch.testing.assert_close(found[1], short, atol=1e-5, rtol=1e-4)


def test_no_more_windows_are_decoded_at_a_time_than_go_into_a_batch() -> None:
    seen: list[int] = []

    def collect(requests: Any, _stage: str) -> torch.Tensor:
        seen.append(len(requests))
        return torch.zeros(len(requests), 4, 8)

    reader: Any = type(
        "Reader", (), {"batch_size": 4, "__call__": lambda _s, r, n: collect(r, n)}
    )()
    (found,) = residuals_of(reader, [request(VideoStream(Windows(5)))], SAMPLING)
    assert seen == [2, 2, 2]
    assert found.shape == (6, 4, 8)


def test_a_video_needs_an_artefact_that_was_fitted_with_videos(llava: Any) -> None:
    old = tiny_artefact(llava.model, llava.processor, video=False)
    with pytest.raises(UnsupportedContentError, match=r"fitted without video.*fit again"):
        require_readable(request(VideoPart(clip(0))), old)
    require_readable(request(), old)
    require_readable(request(VideoPart(clip(0))), tiny_artefact(llava.model, llava.processor))
