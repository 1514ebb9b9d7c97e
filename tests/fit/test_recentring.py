"""Requests keep their scores beside pictures that mean nothing, whatever a picture does to them."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import pytest
import torch

from guardrail.decide.linear import UNMOVED, recentred
from guardrail.errors import DetectorError
from guardrail.fit.dataset import load_contrast
from guardrail.fit.forms import FORMS, PLAN, samples
from guardrail.fit.recentring import (
    CLIPS,
    KEPT,
    LEAST_SLOPE,
    Beside,
    lines,
    lost_scores,
    measured,
    read_beside,
    without_pictures,
)
from guardrail.types import Message, Request, TextPart, VideoPart
from tests.fit.residuals import read_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guardrail.artefact import header as h

CONTRAST = load_contrast()
UNSAFE = {p.text.lower() for p in CONTRAST.prompts if p.label == "unsafe"}
(PICTURED,) = (form for form in FORMS if form.pictures)
SAMPLES = samples(CONTRAST, PICTURED, PLAN[PICTURED.name])
DOES: dict[str, Callable[[float, int], float]] = {
    "adds": lambda _score, _words: 0.4,
    "contracts": lambda score, _words: 0.4 - 0.25 * score,
    "dilutes": lambda score, words: 4 / (4 + words) - 0.2 * score,
    "lifts": lambda score, _words: 0.2 + 0.3 * score,
}


class StandIn:
    """A model of one layer and dimension: requests score about 0 or 1, and what pictures do."""

    def __init__(self, how: str) -> None:
        self.does = DOES[how]
        self.asked: list[Request] = []

    def __call__(self, requests: Sequence[Request], _stage: str) -> torch.Tensor:
        self.asked += requests
        rows = []
        for request in requests:
            (message,) = request.messages
            text = "\n".join(p.text for p in message.parts if isinstance(p, TextPart))
            score = float(text.lower().split("\n")[0] in UNSAFE)
            score += 0.3 * (zlib.crc32(text.encode()) % 1000 / 1000 - 0.5)
            shown = len(request.images) + len(request.videos)
            beside = shown and self.does(score, len(text.split())) + 0.1 * (shown - 1)
            rows.append(score + beside)
        return torch.tensor(rows)[:, None, None]


def scorer(residuals: torch.Tensor) -> torch.Tensor:
    return residuals[:, 0, 0].double()


def read(how: str, *, video: bool = False) -> tuple[dict[str, Beside], StandIn]:
    model = StandIn(how)
    last = model([s.request for s in SAMPLES], "")
    reads = [read_of(row) for row in last]
    model.asked.clear()
    collect: Any = model
    return read_beside(collect, CONTRAST, SAMPLES, reads, video=video), model


def left(how: str, taken: Callable[[dict[str, Beside]], Any]) -> h.Recentring:
    beside, _ = read(how)
    return measured(beside, scorer, taken(beside), {})["image"]


def constant(beside: dict[str, Beside]) -> dict[str, tuple[float, float]]:
    """What takes the same off every score: the mean shift of safe requests."""
    fitted = beside["image"].of("fit")
    safe = ~torch.tensor(fitted.unsafe)
    return {"image": (float((scorer(fitted.beside) - scorer(fitted.alone))[safe].mean()), 1.0)}


@pytest.mark.parametrize("how", DOES)
def test_both_classes_keep_their_scores_beside_pictures_nothing_was_fitted_on(how: str) -> None:
    found = left(how, lambda beside: lines(beside, scorer))
    assert found.n >= 24
    assert abs(found.safe) < KEPT
    assert abs(found.unsafe) < KEPT
    assert found.slope == pytest.approx(1, abs=0.1)
    assert not list(lost_scores({"image": found}))


@pytest.mark.parametrize("how", ["contracts", "dilutes", "lifts"])
def test_no_constant_fits_both_classes_and_that_is_seen(how: str) -> None:
    found = left(how, constant)
    assert abs(found.unsafe) > KEPT
    (warning,) = lost_scores({"image": found})
    assert f"of unsafe ones by {found.unsafe:+.2f}" in warning
    assert "calibrate on pictures of your own" in warning


def test_what_separates_beside_pictures_is_told_before_anything_is_taken_back() -> None:
    for taken in (constant, lambda beside: lines(beside, scorer)):
        assert left("contracts", taken).separation == pytest.approx(0.75, abs=0.02)


def test_a_line_is_the_least_squares_one_of_the_fit_split() -> None:
    beside, _ = read("contracts")
    intercept, slope = lines(beside, scorer)["image"]
    assert (intercept, slope) == pytest.approx((0.4, 0.75), abs=1e-4)
    rows = beside["image"]
    other = Beside(rows.splits, rows.unsafe, rows.alone, rows.beside.clone())
    other.beside[[s != "fit" for s in rows.splits]] = 9.0
    assert lines({"image": other}, scorer)["image"] == (intercept, slope)


def test_what_is_taken_back_is_what_a_guard_takes_back() -> None:
    """`measured` and the product's own re-centring agree, row by row on average."""
    beside, _ = read("contracts")
    taken = lines(beside, scorer)
    held = beside["image"].of("select")
    now = recentred(scorer(held.beside), [taken["image"]] * len(held.splits))
    unsafe = torch.tensor(held.unsafe)
    found = measured(beside, scorer, taken, taken)["image"]
    moved = now - scorer(held.alone)
    assert found.safe == pytest.approx(float(moved[~unsafe].mean()))
    assert found.unsafe == pytest.approx(float(moved[unsafe].mean()))
    assert found.steering == found.score


def test_what_is_read_of_few_requests_has_the_slope_of_a_single_picture() -> None:
    beside, _ = read("contracts", video=True)
    found = lines(beside, scorer)
    assert len(beside["video"].of("fit").splits) == 2 * CLIPS["fit"] < 24
    assert found["video"][1] == found["image"][1]
    fitted = beside["video"].of("fit")
    rest = scorer(fitted.beside) - found["image"][1] * scorer(fitted.alone)
    assert found["video"][0] == pytest.approx(float(rest.mean()))


def test_a_picture_that_leaves_nothing_of_a_score_is_not_divided_by_nothing() -> None:
    rows = torch.randn(60, 1, 1, generator=torch.Generator().manual_seed(0))
    flat = Beside(["fit"] * 30 + ["select"] * 30, [i % 2 == 0 for i in range(60)], rows, rows * 0)
    assert lines({"image": flat}, scorer)["image"][1] == LEAST_SLOPE
    (warning,) = lost_scores(measured({"image": flat}, scorer, lines({"image": flat}, scorer), {}))
    assert "with a slope of 0.00" in warning


def test_pictured_prompts_are_of_both_classes_alike_and_read_without_their_pictures() -> None:
    beside, model = read("adds")
    assert set(beside) == {"image", "images"}
    for rows in beside.values():
        for split in ("fit", "select"):
            of = rows.of(split)
            assert 2 * sum(of.unsafe) == pytest.approx(len(of.unsafe), abs=len(of.unsafe) / 10 + 4)
    assert sum(len(rows.splits) for rows in beside.values()) == len(SAMPLES)
    assert not any(request.images for request in model.asked)


def test_clips_are_read_only_where_they_are_asked_for_with_as_many_of_each_class() -> None:
    beside, model = read("adds", video=True)
    filmed = [request for request in model.asked if request.videos]
    assert len(filmed) == 2 * sum(CLIPS.values())
    for split, count in CLIPS.items():
        assert sorted(beside["video"].of(split).unsafe) == [False] * count + [True] * count
    for request in filmed:
        video, text = request.messages[0].parts
        assert isinstance(video, VideoPart)
        assert isinstance(text, TextPart)
    assert lines(beside, scorer)["video"] == pytest.approx((0.4, 1.0), abs=0.02)


def test_a_request_without_its_pictures_is_otherwise_as_it_was(picture: Any) -> None:
    from guardrail.fit.collect import text_request

    shown = text_request("what is this?", images=[picture()])
    earlier = Message(role="system", parts=(TextPart("be kind"),))
    chat = Request((earlier, *shown.messages), ({"type": "function"},))
    bare = without_pictures(chat)
    assert bare.messages == (earlier, *text_request("what is this?").messages)
    assert bare.tools == chat.tools


def test_a_kind_that_nothing_is_taken_of_is_measured_as_it_is() -> None:
    beside, _ = read("adds")
    found = measured(beside, scorer, {}, {})["image"]
    assert (found.score.intercept, found.score.slope) == UNMOVED
    assert (found.safe, found.unsafe) == pytest.approx((0.4, 0.4), abs=1e-4)
    assert found.steering is None


def test_scores_that_overflow_beside_pictures_are_an_error_that_says_what_to_do() -> None:
    beside, _ = read("adds")
    beside["images"].beside[-1] = torch.inf
    with pytest.raises(DetectorError, match=r"re-centring, images: .* in another dtype"):
        measured(beside, scorer, lines({"image": beside["image"]}, scorer), {})
