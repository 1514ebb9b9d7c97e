"""Text as a picture: all of it visible, the same every time, within its frame."""

from __future__ import annotations

import numpy as np
import pytest

from guardrail.fit.drawing import HEIGHT, WIDTH, draw_text


def ink(text: str, seed: int = 0) -> np.ndarray:
    """Where the picture is darker than its ground."""
    grey = np.asarray(draw_text(text, seed=seed).convert("L"), dtype=int)
    return grey < grey[0, 0] - 60


def test_the_same_text_and_seed_give_the_same_picture() -> None:
    assert draw_text("a boat", seed=4).tobytes() == draw_text("a boat", seed=4).tobytes()
    assert draw_text("a boat", seed=4).tobytes() != draw_text("a boat", seed=5).tobytes()


@pytest.mark.parametrize("words", [1, 12, 40, 90])
def test_text_stays_inside_the_margins(words: int) -> None:
    rows, columns = np.nonzero(ink("harbour " * words))
    assert rows.min() >= 16
    assert columns.min() >= 16
    assert rows.max() < HEIGHT - 8
    assert columns.max() < WIDTH - 8


def test_more_words_leave_more_ink() -> None:
    assert 0 < ink("one").sum() < ink("one two three four").sum()


def test_a_picture_of_nothing_is_its_ground() -> None:
    assert not ink("").any()
