"""Explanations as a figure and as pages."""

from __future__ import annotations

import base64
import io
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from PIL import Image

from guardrail.errors import MissingExtraError
from guardrail.explain.explanation import Explanation, Video
from guardrail.explain.heat import MIDDLE_SCORE, SAFE, UNSAFE
from guardrail.explain.page import (
    explanation_figure,
    explanation_html,
    explanation_page,
    explanation_png,
)
from tests.explain.made import SCRIPT, explanation, filmed, scanned, verdict, window


class _Reader(HTMLParser):
    """Tags with their attributes, and the text outside style elements."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._style = False
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._style = tag == "style"

    def handle_endtag(self, tag: str) -> None:
        self._style = False

    def handle_data(self, data: str) -> None:
        self.text += "" if self._style else data


def drawn(found: Explanation) -> list[Any]:
    """All axes of the figure, in order."""
    figure, _ = explanation_figure(found)
    return [axes for part in figure.subfigs for axes in part.axes]


def drawn_text(found: Explanation) -> str:
    return explanation_figure(found)[1]


def curves(axes: Any) -> dict[str, list[tuple[float, float]]]:
    """The lines of axes by their names; matplotlib names those without one `_child0` and so on."""
    return {
        line.get_label(): list(zip(*map(list, line.get_data()), strict=True)) for line in axes.lines
    }


def test_a_page_asks_for_nothing_and_runs_nothing():
    html = explanation_page(explanation())
    read = _Reader(html)
    assert "script" not in {tag for tag, _ in read.tags}
    for tag, attributes in read.tags:
        for name in ("src", "href", "xlink:href"):
            target = attributes.get(name) or "#"
            assert target.startswith(("data:", "#")), (tag, target)
    assert "url(http" not in html
    assert SCRIPT in read.text  # as text
    assert "model & co" in read.text


def test_every_token_with_text_is_a_span_that_tells_its_score():
    read = _Reader(explanation_page(explanation()))
    spans = [a for tag, a in read.tags if tag == "span" and "position" in (a.get("title") or "")]
    assert [re.search(r"position (\d+)", a["title"])[1] for a in spans] == [
        "0", "1", "8", "9", "11", "12",
    ]  # fmt: skip
    assert spans[3]["title"].startswith("1.40, user")
    assert "hi" in spans[3]["class"].split()
    assert "lo" in spans[4]["class"].split()
    assert not any("decides" in span["class"].split() for span in spans)
    worded = _Reader(explanation_page(explanation(where=window(8, 10, words="what is"))))
    decided = [a["title"] for tag, a in worded.tags if "decides" in (a.get("class") or "").split()]
    assert [title.partition(", ")[0] for title in decided] == ["0.70", "1.40"]
    assert all(title.endswith("decided") for title in decided)
    assert spans[0]["style"] == "--a:1.00"  # far below the scale
    assert spans[2]["style"] == "--a:0.12"


def test_a_part_fits_into_another_page_more_than_once():
    part = explanation_html(explanation(), heading="h3")
    assert "<html" not in part
    assert not re.search(r'\bid="(verdict|figure|prompt)"', part)
    assert hasattr(part, "__html__")  # an autoescaping template takes it as it is
    with pytest.raises(ValueError, match="h2, h3 or h4"):
        explanation_html(explanation(), heading="script")


def test_a_picture_without_a_grid_is_shown_as_bars_and_says_why():
    read = _Reader(explanation_page(explanation(grid=None)))
    assert "not known <b>where</b>" in read.text
    assert "positions without a score: 1" in read.text
    assert "as the model got it" not in read.text
    assert "Scores of picture 1, position by position" in read.text
    assert "2 \N{MULTIPLICATION SIGN} 3 positions" in _Reader(explanation_page(explanation())).text
    _, original, bars = drawn(explanation(grid=None))
    assert len(original.images) == 1
    *filled, third, fourth, fifth = bars.patches
    assert [(bar.get_x() + 0.4, bar.get_y() + bar.get_height()) for bar in filled] == [
        (1, 0.5), (2, 0.5), (3, 0.5), (4, 0.5), (5, 2.0),
    ]  # fmt: skip
    assert [span.get_x() for span in (third, fourth, fifth)] == [2.5, 3.5, 4.5]
    assert third.get_facecolor()[3] == 0


def test_the_slots_of_a_window_that_decided_are_framed_in_the_picture():
    heat = drawn(explanation())[2]
    width, height = heat.images[0].get_array().shape[1] / 3, heat.images[0].get_array().shape[0] / 2
    cells = {
        (round((frame.get_x() + 0.5) / width), round((frame.get_y() + 0.5) / height))
        for frame in heat.patches
    }
    assert cells == {(2, 0), (0, 1), (1, 1)}  # slots 3 to 5 of two rows of three
    told = _Reader(explanation_page(explanation())).text
    assert "framed: what decided, positions 3 to 5" in told
    assert "in message 1 (user), image positions 3 to 5 of 6" in told
    elsewhere = explanation(where=window(8, 10, words="what <b>is"))
    assert not drawn(elsewhere)[2].patches
    assert 'tokens 9 to 10: "what <b>is"' in _Reader(explanation_page(elsewhere)).text
    assert '"what <b>is". model & co' in drawn_text(elsewhere)


def test_pictures_in_a_page_are_data_of_the_map_and_the_original():
    tags = _Reader(explanation_page(explanation())).tags
    images = [a["xlink:href"] for tag, a in tags if tag == "image"]
    assert all(source.startswith("data:image/png;base64,") for source in images)
    _ground, first, second = (
        Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in images
    )
    assert first.convert("RGB").getpixel((0, 0)) == (0, 128, 0)
    assert second.size == (448, 299)


def test_the_score_stands_at_every_position_with_the_thresholds_and_what_decided():
    along = drawn(explanation())[0]
    found = curves(along)
    (scores,) = [line for line in found.values() if len(line) == 13]
    assert [x for x, _ in scores] == list(range(13))
    assert scores[9][1] == 1.4
    assert scores[7][1] != scores[7][1]  # hidden: a gap
    assert {y for _, y in found["steer at 0.60"]} == {0.6}
    assert {y for _, y in found["flag at 1.10"]} == {1.1}
    assert found["the highest, which decides"] == [(6, 2.0)]
    framed = [patch for patch in along.patches if patch.get_facecolor()[3] == 0]
    assert [(frame.get_x(), frame.get_width()) for frame in framed] == [(3.5, 3)]
    low, high = along.get_ylim()
    assert low > -3  # though one of them scores -90
    assert high >= 2.0


def test_the_ground_of_a_curve_is_the_scale():
    ground = drawn(explanation())[0].images[0]
    left, right, low, high = ground.get_extent()
    colours = ground.get_array()[:, 0]
    assert (left, right) == (-0.5, 12.5)
    assert (tuple(colours[0][:3]), tuple(colours[-1][:3])) == (SAFE, UNSAFE)
    middle = round((MIDDLE_SCORE - low) / (high - low) * len(colours))
    assert colours[middle][3] < 5 < colours[0][3]


def test_the_png_and_the_page_show_the_same_figure():
    found = explanation(model="a $x^2$ model \N{GRINNING FACE}\x1b")
    image = Image.open(io.BytesIO(explanation_png(found)))
    assert image.format == "PNG"
    assert image.width > 1000
    assert "Software" not in image.info
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', explanation_page(found))
    assert image.height / image.width == pytest.approx(float(size[2]) / float(size[1]), abs=0.01)
    taller = Image.open(io.BytesIO(explanation_png(explanation(pictures=()))))
    assert taller.height < image.height


def test_the_same_explanation_gives_the_same_bytes():
    assert explanation_page(scanned()) == explanation_page(scanned())
    assert explanation_png(explanation()) == explanation_png(explanation())


def test_an_outage_and_slots_of_no_picture_can_be_drawn():
    slots = replace(explanation(grid=None).pictures[0], original=None, seen=None)
    found = explanation(
        verdict=verdict(score=None), where=None, pictures=(slots,), notes=("something",)
    )
    assert explanation_png(found)
    assert "something" in explanation_page(found)
    assert len(drawn(found)) == 2


@pytest.mark.parametrize("make", [explanation_png, explanation_page])
def test_what_is_missing_is_named_with_its_extra(monkeypatch, make):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match="extra 'report'"):
        make(explanation())


def test_the_score_of_each_frame_stands_with_its_time():
    _, above, below = drawn(filmed())
    told = [label.get_text() for label in below.get_xticklabels()]
    assert told == ["0.0 s\n0.10", "0.5 s\n0.90", "1.0 s\nnone", "1.5 s\n0.40"]
    (curve,) = [line for line in curves(above).values() if len(line) == 4]
    assert [(x, y) for x, y in curve if y == y] == [(0.0, 0.1), (0.5, 0.9), (1.5, 0.4)]
    assert "3 frames; the highest score is 0.90, at 0.5 s" in explanation_page(filmed())


def test_every_window_of_a_long_video_is_drawn_along_time():
    assert "window by window" not in explanation_page(filmed())
    told = "2 windows; the highest score is 0.80, at 4.0 to 7.5 s"
    assert told in explanation_page(scanned())
    windows = curves(drawn(scanned())[1])
    assert windows["video 1"] == [(0.0, -0.5), (3.5, -0.5), (4.0, 0.8), (7.5, 0.8)]
    assert "steer at 0.60" in windows


def test_a_page_holds_frames_and_curve_and_a_part_of_a_page_too():
    page = explanation_page(scanned())
    assert "window by window" in page
    assert "window 1 of 1, 0.0 to 1.5 s" in page
    brief = str(explanation_html(filmed(), heading="h4", brief=True))
    assert "frame by frame" in brief
    assert "window by window" not in brief
    assert "Highest positions" not in brief


def test_of_many_frames_some_are_shown_and_all_are_drawn():
    (video,) = filmed().videos
    many = tuple(replace(video.frames[0], time_s=float(i)) for i in range(60))
    found = replace(filmed(), videos=(replace(video, frames=many),))
    _, above, below = drawn(found)
    assert len(below.get_xticklabels()) == 8
    assert 60 in map(len, curves(above).values())
    assert "60 frames" in explanation_page(found)


def test_frames_that_are_tied_to_no_position_are_admitted():
    untied = replace(filmed(), videos=(Video(positions=(), frames=(), note="not known"),))
    assert len(drawn(untied)) == 1
    assert "frame by frame: not known." in explanation_page(untied)
