"""The pictures that are drawn for the tiny VLM."""

from types import ModuleType

import numpy as np
import pytest
from PIL import Image, ImageOps

from tests.tiny_vlm import PHOTOGRAPHS, module

TEXT = "Plant a tree"


@pytest.fixture(scope="module")
def render() -> ModuleType:
    pytest.importorskip("matplotlib")
    return module("render")


@pytest.fixture
def cat() -> Image.Image:
    return Image.open(PHOTOGRAPHS / "cat.jpg")


def test_a_picture_depends_on_its_arguments_alone(render):
    for style in render.STYLES:
        once, again = (render.render(TEXT, seed=3, style=style) for _ in range(2))
        assert once.tobytes() == again.tobytes()
    assert render.render(TEXT, seed=1, style="varied").tobytes() != once.tobytes()


def test_every_kind_of_textless_picture_has_the_size_asked_for(render):
    for kind in render.KINDS:
        for size in ((40, 30), (1, 1)):
            assert render.plain_picture(0, kind, size).size == size


def test_unknown_styles_and_kinds_are_refused(render):
    with pytest.raises(ValueError, match="style must be one of"):
        render.render(TEXT, style="round")
    with pytest.raises(ValueError, match="kind must be one of"):
        render.plain_picture(0, "text")


def test_a_text_on_a_photograph_depends_on_its_arguments_alone(render, cat):
    pictures = {render.on_photograph(TEXT, cat, seed=seed % 6).tobytes() for seed in range(12)}
    assert len(pictures) == 6


@pytest.mark.parametrize("size", [(640, 480), (300, 400)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_a_text_covers_a_part_of_the_photograph_and_leaves_the_rest(render, cat, mode, size):
    photograph = cat.convert(mode)
    plain = np.asarray(ImageOps.fit(photograph.convert("RGB"), size), int)
    for seed in range(10):
        image = render.on_photograph(TEXT, photograph, seed=seed, size=size)
        assert image.size == size
        changed = np.abs(np.asarray(image, int) - plain).max(2) > 0
        assert 0.005 < changed.mean() < 0.4
        rows = np.flatnonzero(changed.any(1))
        assert 0 < rows[0] < rows[-1] < size[1] - 1  # no line of it is cut off


def test_a_bare_text_stands_out_from_what_is_behind_it(render):
    for colour in ("black", "white", "navy", "yellow"):
        ground = Image.new("RGB", (640, 480), colour)
        for seed in range(10):
            image = np.asarray(render.on_photograph(TEXT, ground, seed=seed).convert("L"), int)
            assert np.ptp(image) > 120
