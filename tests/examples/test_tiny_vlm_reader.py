"""The tiny VLM's text reader, with networks that stand in for the detector and the recogniser."""

from __future__ import annotations

import random
from math import cos, pi, sin
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tests.tiny_vlm import module

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

pytest.importorskip("scipy")
reading = module("text_reader")
Box = reading.Box

SIZE = (320, 224)  # of the pictures here
LETTERS = "abcdefghijklmnopqrstuvwxyz.,!"


def seen_from(box: Box) -> tuple[Tensor, Tensor]:
    """How far along and across the box, from its centre, each pixel's middle lies."""
    x, y = torch.arange(SIZE[0]) + 0.5 - box.x, torch.arange(SIZE[1])[:, None] + 0.5 - box.y
    return cos(box.angle) * x + sin(box.angle) * y, cos(box.angle) * y - sin(box.angle) * x


def marked(*boxes: Box, sure: float = 0.9) -> np.ndarray:
    """A detector's map of the boxes."""
    marks = torch.zeros(SIZE[1], SIZE[0])
    for box in boxes:
        along, across = seen_from(box)
        marks[(along.abs() < box.width / 2) & (across.abs() < box.height / 2)] = sure
    return marks.numpy()


def painted(pattern: Callable[[Tensor, Tensor], Tensor], box: Box) -> Tensor:
    """A picture of a pattern of what lies along and across the box."""
    return pattern(*seen_from(box)).expand(3, -1, -1)


# ---- boxes


def test_every_marked_piece_is_a_box_where_it_is_and_larger():
    """Larger by 1.6 times its area over half its perimeter: what is marked is shrunken text."""
    pieces = [Box(80, 50, 0.0, 100, 12), Box(220, 50, 0.0, 60, 20), Box(160, 150, 0.0, 40, 60)]
    found = reading.boxes(marked(*pieces))
    assert len(found) == len(pieces)
    for box, piece in zip(sorted(found, key=lambda one: (one.y, one.x)), pieces, strict=True):
        width, height = piece.width + 1, piece.height + 1  # what nearly touches is joined first
        grown = 1.6 * width * height / (width + height)
        assert (box.x, box.y) == pytest.approx((piece.x, piece.y), abs=0.51)
        assert (box.angle, box.width, box.height) == pytest.approx(
            (0, width + grown, height + grown)
        )


@given(
    st.floats(0.08, 0.7),
    st.sampled_from((-1, 1)),
    st.tuples(st.integers(110, 210), st.integers(90, 134)),
    st.integers(60, 140),
)
def test_a_slanted_piece_is_a_box_that_leans_as_it_does(angle, side, centre, width):
    piece = Box(*centre, side * angle, width, 12)
    (box,) = reading.boxes(marked(piece))
    assert box.angle == pytest.approx(piece.angle, abs=0.03)
    assert (box.x, box.y) == pytest.approx(centre, abs=1.5)
    grown = 1.6 * (width + 1) * 13 / (width + 14)
    assert (box.width, box.height) == pytest.approx((width + grown, 13 + grown), abs=5)


def test_what_leans_less_than_its_pixels_can_show_is_level():
    (box,) = reading.boxes(marked(Box(160, 100, 0.02, 200, 12)))
    assert box.angle == 0


@pytest.mark.parametrize("angle", [0.9, -0.9, pi / 2 - 0.2])
def test_what_stands_more_than_it_lies_is_no_line_that_leans(angle):
    (box,) = reading.boxes(marked(Box(160, 112, angle, 150, 12)))
    assert box.angle == 0
    assert box.height > box.width


@pytest.mark.parametrize(
    ("marks", "number"),
    [
        (marked(Box(100, 100.5, 0.0, 40, 1), sure=0.7) + np.float32(0.25), 0),
        (marked(Box(100, 100, 0.0, 40, 4)), 1),
        (marked(Box(100, 100, 0.0, 40, 12), sure=0.4), 0),
        (marked(Box(100, 100, 0.0, 40, 12), sure=0.25), 0),
        (marked(Box(100, 100, 0.0, 40, 12), sure=0.6), 1),
        (np.zeros(SIZE, np.float32), 0),
        (np.ones(SIZE, np.float32), 1),
    ],
    ids=["flat", "low", "unsure", "unmarked", "sure", "none", "all"],
)
def test_a_piece_too_small_or_unsure_is_no_text(marks, number):
    assert len(reading.boxes(marks)) == number


@pytest.mark.parametrize("side", [-1, 1])
def test_pieces_that_touch_at_a_corner_are_one(side):
    upper, lower = Box(160 - side * 20, 100, 0.0, 40, 10), Box(160 + side * 20, 110, 0.0, 40, 10)
    assert len(reading.boxes(marked(upper, lower))) == 1


# ---- reading order


def order(boxes: Sequence[Box]) -> list[list[Box]]:
    """The rows, which do not depend on the order of what was found."""
    rows = reading.in_order(list(boxes))
    for seed in range(5):
        assert reading.in_order(random.Random(seed).sample(boxes, len(boxes))) == rows
    return rows


def test_rows_go_down_and_each_to_the_right_though_their_boxes_are_not_level():
    rows = [
        [Box(60, 40, 0.0, 80, 20), Box(200, 44, 0.0, 80, 20)],
        [Box(60, 73, 0.0, 80, 20), Box(200, 70, 0.0, 80, 20)],
        [Box(60, 100, 0.0, 80, 20), Box(200, 105, 0.0, 80, 20)],
    ]
    assert order([box for row in rows for box in row]) == rows


def test_a_high_box_is_in_the_row_that_its_middle_is_in():
    """A large title's row takes in small text beside its middle, not beside its foot."""
    title = Box(80, 60, 0.0, 120, 60)
    beside, below = Box(220, 64, 0.0, 60, 16), Box(220, 84, 0.0, 60, 16)
    assert order([title, beside, below]) == [[title, beside], [below]]


def test_a_flight_of_steps_is_many_rows():
    """Each box is near the one before it, and the last far below the first."""
    steps = [Box(30 + 40 * i, 30 + 6 * i, 0.0, 30, 20) for i in range(6)]
    assert order(steps) == [steps[:2], steps[2:4], steps[4:]]


def test_nothing_has_no_rows():
    assert reading.in_order([]) == []


# ---- cutting out


@pytest.mark.parametrize("height", [24, 48, 80])
@pytest.mark.parametrize("angle", [0.0, 0.05, 0.3, -0.3, -0.7])
def test_what_is_in_a_box_is_cut_out_upright_and_at_one_height(angle, height):
    def pattern(along: Tensor, across: Tensor) -> Tensor:
        return torch.sin(along / 6) * torch.cos(across / 9 + 0.5)

    box = Box(160, 112, angle, 120, height)
    part = reading.cut_out(painted(pattern, box), box)
    scale = height / reading.HEIGHT
    assert part.shape == (3, reading.HEIGHT, round(120 / scale))
    along = (torch.arange(part.shape[2]) + 0.5) * scale - 60
    across = ((torch.arange(part.shape[1]) + 0.5) * scale - height / 2)[:, None]
    inside = slice(2, -2)  # at the border, scaling sees the pixels beside it
    found, wanted = part[0], pattern(along, across)
    assert (found - wanted)[inside, inside].abs().max() < 0.06


@pytest.mark.parametrize("angle", [0.0, 0.3])
def test_fine_stripes_in_a_high_box_become_grey(angle):
    box = Box(160, 112, angle, 180, 144)
    stripes = (torch.arange(SIZE[0]) % 2 * 2.0 - 1).expand(3, SIZE[1], -1)
    inner = reading.cut_out(stripes, box)[:, 3:-3, 3:-3]
    assert inner.abs().max() < 0.3


@pytest.mark.parametrize("shift", [(-50, 0), (50, 0), (0, -20), (0, 20)])
def test_of_a_box_that_reaches_out_of_the_picture_the_inner_part_is_cut_out(shift):
    """And nothing beside the box instead of what lies outside."""
    image = torch.rand(3, 96, 256, generator=torch.Generator().manual_seed(0))
    reaching = Box(128 + 2 * shift[0], 48 + 2 * shift[1], 0.0, 100, 40)
    left, right = max(0, 78 + 2 * shift[0]), min(256, 178 + 2 * shift[0])
    top, foot = max(0, 28 + 2 * shift[1]), min(96, 68 + 2 * shift[1])
    inner = Box((left + right) / 2, (top + foot) / 2, 0.0, right - left, foot - top)
    assert inner.width < 100 or inner.height < 40
    assert torch.equal(reading.cut_out(image, reaching), reading.cut_out(image, inner))


def test_a_slanted_box_that_reaches_out_of_the_picture_goes_on_in_the_colour_of_its_edge():
    image = torch.full((3, 64, 128), 0.7)
    part = reading.cut_out(image, Box(10, 10, 0.3, 60, 30))
    torch.testing.assert_close(part, torch.full_like(part, 0.7))


@pytest.mark.parametrize(
    ("box", "width"),
    [(Box(2000, 16, 0.0, 4000, 4), reading.WIDEST), (Box(5, 16, 0.0, 0.2, 30), 2)],
)
def test_a_cut_out_is_never_wider_than_the_recogniser_may_read_nor_empty(box, width):
    assert reading.cut_out(torch.zeros(3, 32, 4000), box).shape[2] == width


# ---- characters


def reader(detector: nn.Module | None = None, recogniser: nn.Module | None = None) -> nn.Module:
    """A reader whose networks must not be called unless they are given."""
    nothing = {"steps": [], "tensors": {}}
    made = reading.TextReader(
        {"detector": nothing, "recogniser": nothing, "characters": list(LETTERS)}
    )
    made.detector, made.recogniser = detector or Unused(), recogniser or Unused()
    return made


class Unused(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("this network is not to be called")


def frames(path: str, sure: float = 0.99) -> Tensor:
    """Probabilities of a reading, one frame a character and `_` for the CTC blank."""
    labels = torch.tensor([0 if c == "_" else f"_{LETTERS} ".index(c) for c in path])
    classes = len(LETTERS) + 2
    chosen = nn.functional.one_hot(labels, classes).float()
    return chosen * sure + (1 - chosen) * (1 - sure) / (classes - 1)


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("cat", "cat"),
        ("_ccc_aa_t_", "cat"),
        ("hheel_lo_", "hello"),
        ("hheello_", "helo"),
        ("aa_a", "aa"),
        ("_a_ _b_", "a b"),
        ("  __a__  ", "a"),
        ("____", ""),
        ("_._,_!", ""),
        ("a!_!", "a!!"),
    ],
)
def test_repeats_are_one_character_and_blanks_none(path, text):
    assert reader().text(frames(path)) == text


def test_a_line_is_illegible_if_its_characters_are_unsure_whatever_its_blanks_are():
    unsure = torch.cat([frames("___"), frames("cat", sure=0.4), frames("___")])
    assert reader().text(unsure) == ""
    mixed = torch.cat([frames("___", sure=0.4), frames("ca"), frames("t", sure=0.4)])
    assert reader().text(mixed) == "cat"


class Recogniser(nn.Module):
    """Reads a picture's columns as classes, 8 pixels each, and remembers what it was given.

    Columns of 0, which a narrower picture is padded with, are blanks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.widths: list[int] = []
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.widths.append(x.shape[3])
        self.sizes.append(len(x))
        return nn.functional.one_hot(x[:, 0, 24, 4::8].long(), len(LETTERS) + 2).float()


def written(text: str) -> Tensor:
    """A cut-out that `Recogniser` reads as the text."""
    columns = torch.tensor([f"_{LETTERS} ".index(c) for c in text])
    return columns.repeat_interleave(8).float().expand(3, reading.HEIGHT, -1)


@given(st.lists(st.text("abcxyz", max_size=60), max_size=20), st.randoms())
def test_each_line_is_read_in_its_place_whatever_is_read_with_it(texts, shuffling):
    texts = [f"{text}q" for text in texts]
    parts = [written("_".join(text)) for text in texts]
    assert reader(recogniser=Recogniser()).lines(parts) == texts
    shuffled = shuffling.sample(range(len(texts)), len(texts))
    again = reader(recogniser=Recogniser()).lines([parts[i] for i in shuffled])
    assert again == [texts[i] for i in shuffled]


def test_lines_of_like_widths_are_read_together_and_never_in_too_narrow_a_picture():
    recogniser = Recogniser()
    long, short = "abcdefghij" * 6, "ab"
    texts = [long, short] * 8
    assert reader(recogniser=recogniser).lines([written(text) for text in texts]) == texts
    assert recogniser.widths == [reading.NARROWEST, 8 * len(long)]
    assert recogniser.sizes == [8, 8]


# ---- pictures


class Detector(nn.Module):
    """Marks given boxes, and keeps what it was shown."""

    def __init__(self, *boxes: Box) -> None:
        super().__init__()
        self.marks = torch.tensor(marked(*boxes))[None, None]
        self.shown = torch.zeros(0)

    def forward(self, x: Tensor) -> Tensor:
        self.shown = x
        return self.marks


def picture(lines: dict[Box, str]) -> Tensor:
    """Texts in boxes of `reading.HEIGHT`, as `Recogniser` reads them."""
    image = torch.zeros(3, SIZE[1], SIZE[0])
    for box, text in lines.items():
        left, top = round(box.x - box.width / 2), round(box.y - box.height / 2)
        part = written(text)
        image[:, top : top + reading.HEIGHT, left : left + part.shape[2]] = part
    return image


def exact(monkeypatch: pytest.MonkeyPatch, boxes: Sequence[Box]) -> None:
    """Have these boxes found, where growth would blur what is in them."""
    monkeypatch.setattr(reading, "boxes", lambda marks: list(boxes))


def test_the_words_of_a_picture_come_in_reading_order(monkeypatch):
    lines = {
        Box(80, 40, 0.0, 80, 48): "name_ _two",
        Box(240, 44, 0.0, 80, 48): "birds",
        Box(80, 120, 0.0, 80, 48): "__..__",  # read as nothing: no gap is left for it
        Box(240, 120, 0.0, 80, 48): "please",
    }
    exact(monkeypatch, list(lines)[::-1])
    assert reader(Detector(), Recogniser())(picture(lines)) == "name two birds please"


def test_no_more_lines_are_read_than_allowed(monkeypatch):
    found = [Box(160, 2.0 + 3 * i, 0.0, 80, 3) for i in range(reading.LINES + 5)]
    exact(monkeypatch, found)
    recogniser = Recogniser()
    image = torch.rand(3, SIZE[1], SIZE[0])
    reader(Detector(), recogniser)(image)
    assert sum(recogniser.sizes) == reading.LINES


def test_a_picture_without_marks_is_not_read_and_one_of_one_colour_not_even_looked_at():
    image = torch.rand(3, SIZE[1], SIZE[0]) * 2 - 1
    assert reader(Detector())(image) == ""
    for colour in (-1.0, 0.0, 0.7):
        assert reader()(torch.full((3, SIZE[1], SIZE[0]), colour)) == ""


def test_the_networks_see_blue_green_and_red():
    image = torch.rand(3, SIZE[1], SIZE[0])
    detector = Detector()
    reader(detector)(image)
    assert torch.equal(detector.shown[0], torch.stack([image[2], image[1], image[0]]))


def test_the_recogniser_is_given_every_line_level():
    """What changes across the line only changes from row to row only."""

    class Seen(Recogniser):
        def forward(self, x: Tensor) -> Tensor:
            self.given = x
            return super().forward(x * 0)

    for angle in (0.0, 0.25, -0.5):
        box = Box(160, 112, angle, 120, 14)
        recogniser = Seen()
        reader(Detector(box), recogniser)(painted(lambda _, across: across / 10, box))
        rows = recogniser.given[0, 0, :, 10:140]
        assert rows.std(1).max() < 0.1
        assert rows[-1].mean() - rows[0].mean() == pytest.approx(3.6, abs=0.4)
