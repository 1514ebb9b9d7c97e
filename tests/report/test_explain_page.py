"""Explanations as pages, pictures and figures, from made-up scores."""

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
from guardrail.evaluation.explanation import Explanation, Picture, Position
from guardrail.report.explain_figure import explanation_png
from guardrail.report.explain_page import explanation_html, explanation_page
from guardrail.report.heat import Scale, highest_rows, marks, scale_for
from guardrail.report.heat_map import heat_map
from guardrail.types import Action, Modality, Verdict

SCRIPT = "<script>alert(1)</script>"


def verdict(score: float | None = 0.9, steer: float = 0.6, flag: float = 1.1) -> Verdict:
    return Verdict(
        action=Action.STEER,
        would_be=Action.STEER,
        score=score,
        tau_steer=steer,
        tau_flag=flag,
        layers=(14, 16),
        modality=Modality.IMAGE,
        artefact_id="guard-0123",
        reason="score" if score is not None else "detector_failed",
    )


def picture(
    scores: tuple[float | None, ...], grid: tuple[int, int] | None, start: int, note: str = ""
) -> Picture:
    image = Image.new("RGB", (60, 40), "green")
    return Picture(
        positions=tuple(range(start, start + len(scores))),
        scores=scores,
        grid=grid,
        note=note,
        original=image,
        seen=image,
    )


def explanation(grid: tuple[int, int] | None = (2, 3), **changes: Any) -> Explanation:
    slots = (0.5, 0.5, 0.5, 0.5, 2.0, None)
    words = ["<|im_start|>", "user\n", *["<image>"] * 6, f"what {SCRIPT}", " is\n\n", "", "é", "\n"]
    kinds = ["template", "template", *["image"] * 6, "text", "text", "text", "text", "template"]
    scores = [-90.0, 0.2, *slots, 0.7, 1.4, -0.3, 0.1, 0.9]
    positions = tuple(
        Position(
            index=i, text=text, kind=kind, role="user" if kind == "text" else None, score=score
        )
        for i, (text, kind, score) in enumerate(zip(words, kinds, scores, strict=True))
    )
    note = "" if grid else "not known <b>where</b>"
    made = Explanation(
        model="model & co",
        verdict=verdict(),
        positions=positions,
        pictures=(picture(slots, grid, 2, note),),
    )
    return replace(made, **changes)


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


def test_a_page_asks_for_nothing_and_runs_nothing():
    html = explanation_page(explanation())
    read = _Reader(html)
    assert "script" not in {tag for tag, _ in read.tags}
    for tag, attributes in read.tags:
        for name in ("src", "href"):
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
    assert "decides" in spans[-1]["class"].split()
    assert spans[0]["style"] == "--a:1.00"  # far below the scale
    assert spans[2]["style"] == "--a:0.20"


def test_a_part_fits_into_another_page_more_than_once():
    part = explanation_html(explanation(), heading="h3")
    assert "<html" not in part
    assert not re.search(r'\bid="(verdict|prompt|picture-1)"', part)
    assert hasattr(part, "__html__")  # an autoescaping template takes it as it is
    with pytest.raises(ValueError, match="h2, h3 or h4"):
        explanation_html(explanation(), heading="script")


def test_a_picture_without_a_grid_is_shown_as_bars_and_says_why():
    html = explanation_page(explanation(grid=None))
    read = _Reader(html)
    assert "Not known <b>where</b>." in read.text
    assert "without a finite score: 1 positions" in read.text
    assert "heat map" not in read.text
    assert "Scores of picture 1, position by position" in read.text
    assert "2 \N{MULTIPLICATION SIGN} 3 positions" in _Reader(explanation_page(explanation())).text


def test_pictures_in_a_page_are_data_of_the_map_and_the_original():
    images = [a["src"] for tag, a in _Reader(explanation_page(explanation())).tags if tag == "img"]
    first, second = (
        Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in images
    )
    assert first.getpixel((0, 0)) == (0, 128, 0)
    assert second.size == (448, 299)


def test_the_hottest_cell_is_where_the_score_is():
    made = heat_map(explanation().pictures[0], Scale(1.0), side=90)
    assert made.size == (90, 60)
    centres = [made.getpixel((15 + 30 * c, 15 + 30 * r)) for r in range(2) for c in range(3)]
    reds = [red - blue for red, _, blue in centres]
    assert reds.index(max(reds)) == 4
    assert max(reds) > 80
    neutral = [centre for i, centre in enumerate(centres) if i != 4]
    assert all(max(colour) - min(colour) <= 1 for colour in neutral)  # 0.5 and unread: grey


def test_cells_are_warm_above_the_middle_and_cold_below_it():
    made = heat_map(picture((0.7, 0.3), (1, 2), 0), Scale(1.0), side=60)
    (warm, _, cold), (red, _, blue) = made.getpixel((15, 20)), made.getpixel((45, 20))
    assert warm > cold + 5
    assert blue > red + 5


def test_a_map_has_a_pixel_for_every_cell_and_none_without_a_grid():
    wide = picture(tuple([0.0] * 300), (1, 300), 0)
    assert heat_map(wide, Scale(1.0), side=60).size == (300, 40)
    assert heat_map(picture((0.0,), None, 0), Scale(1.0)) is None


def test_marks_leave_nothing_out_and_take_a_picture_together():
    found = marks(explanation())
    assert [mark.kind for mark in found] == [
        "template", "template", "picture", "text", "text", "text", "template",
    ]  # fmt: skip
    assert found[2].text == "[picture 1: 6 positions]"
    assert (found[4].text, found[4].after) == (" is\u21b5\n\u21b5", "\n")
    assert [mark.decides for mark in found] == [False] * 6 + [True]


def test_the_highest_positions_say_where_they_are():
    rows = highest_rows(explanation(), 3)
    assert [(row.index, row.text, row.source) for row in rows] == [
        (6, "slot 5 of 6", "picture 1"),
        (9, "is\u21b5\u21b5", "user"),
        (8, f"what {SCRIPT}", "user"),
    ]


def test_the_figure_is_a_picture_of_the_whole_request():
    data = explanation_png(explanation(model="a $x^2$ model \N{GRINNING FACE}"))
    drawn = Image.open(io.BytesIO(data))
    assert drawn.format == "PNG"
    assert drawn.width > 1000
    assert "Software" not in drawn.info
    colours = {colour for _, colour in drawn.convert("RGB").getcolors(1 << 20)}
    hot = scale_for(verdict()).rgb(1.4, 0.62)
    assert any(max(abs(a - b) for a, b in zip(c, hot, strict=True)) <= 2 for c in colours)
    taller = Image.open(io.BytesIO(explanation_png(explanation(pictures=()))))
    assert taller.height < drawn.height


def test_an_outage_and_slots_of_no_picture_can_be_drawn():
    slots = replace(explanation(grid=None).pictures[0], original=None, seen=None)
    found = explanation(verdict=verdict(score=None), pictures=(slots,), notes=("something",))
    assert explanation_png(found)
    assert "something" in explanation_page(found)
    assert "as given" not in _Reader(explanation_page(found)).text


@pytest.mark.parametrize(
    ("module", "make"),
    [
        ("matplotlib", explanation_png),
        ("matplotlib", lambda found: explanation_page(replace(found, **strip(found)))),
    ],
)
def test_what_is_missing_is_named_with_its_extra(monkeypatch, module, make):
    from guardrail.report import page

    page._environment.cache_clear()
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match="extra 'report'"):
        make(explanation())


def strip(found: Explanation) -> dict[str, Any]:
    return {"pictures": (replace(found.pictures[0], grid=None),)}
