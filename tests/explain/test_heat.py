"""Scores as colours, pictures under them, and text that is safe to show."""

from __future__ import annotations

from dataclasses import replace

from guardrail.explain.heat import (
    MIDDLE_SCORE,
    Scale,
    heat_map,
    highest_rows,
    marks,
    scale_for,
    shown,
    told_where,
)
from guardrail.types import Where
from tests.explain.made import SCRIPT, explanation, filmed, picture, verdict, window


def test_the_scale_is_even_around_the_middle_and_holds_what_matters():
    scale = scale_for(verdict(score=1.9))
    low, high = scale.ends
    assert low < 0 < 1 < 1.9 < high
    assert (low + high) / 2 == MIDDLE_SCORE
    assert scale.share(0.5) == 0
    assert scale.share(-1e9) == -1
    assert scale.rgb(0.5)[0] == scale.rgb(0.5)[2]
    red, _, blue = scale.rgb(high)
    assert red > blue + 100
    red, _, blue = scale.rgb(low)
    assert blue > red + 100
    assert scale_for(verdict(score=None, steer=1e6, flag=2e6)).half == 2.5  # not useless
    assert scale_for(verdict(score=0.5, steer=0.5, flag=0.6)).half == 1.0


def test_a_chart_holds_the_scale_and_cuts_off_what_is_far_outside_of_it():
    low, high = Scale(1.0).span_of([0.5, None, 1.9, -90.0])
    assert -1.6 < low <= -1.5
    assert 1.9 <= high < 2.0


def test_text_cannot_steer_a_terminal_or_turn_what_follows_round():
    assert shown("a\x1b[31mb\u202ec\x00d\te") == "a\ufffd[31mb\ufffdc\ufffdd    e"


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
    assert [mark.decides for mark in found] == [False, False, True, False, False, False, False]


def test_the_tokens_of_a_window_that_decided_are_marked_and_quoted():
    worded = explanation(where=window(8, 11, words="what\n is\x1b "))
    assert [mark.position for mark in marks(worded) if mark.decides] == [8, 9]  # 10 has no text
    assert told_where(worded) == 'in message 1 (user), tokens 9 to 11: "what\u21b5 is\ufffd"'
    assert told_where(explanation()) == "in message 1 (user), image positions 3 to 5 of 6"
    assert told_where(explanation(where=None)) == ""


def test_where_no_window_decided_it_is_the_position_with_the_highest_score():
    ended = explanation(where=Where(reading="last", message=0, role="user"), pictures=())
    last = replace(ended.positions[-1], score=3.0)
    ended = replace(ended, positions=(*ended.positions[:-1], last))
    assert list(ended.decided) == [12]
    assert [mark.position for mark in marks(ended) if mark.decides] == [12]
    assert not explanation(where=None).decided


def test_the_highest_positions_say_where_they_are():
    rows = highest_rows(explanation(), 5)
    assert [(found.index, text, source) for found, text, source in rows] == [
        (6, "slot 5 of 6", "picture 1"),
        (9, "is\u21b5\u21b5", "user"),
        (12, "\u21b5", "the last position"),
        (8, f"what {SCRIPT}", "user"),
        (2, "slot 1 of 6", "picture 1"),
    ]
    (end,) = (row for row in highest_rows(explanation(), 99) if row[0].index == 1)
    assert end[1:] == ("user\u21b5", "the end of an earlier turn")


def test_a_video_is_one_mark_in_the_prompt_and_its_slots_are_named():
    assert [mark.text for mark in marks(filmed())] == [
        "w0",
        "[video 1: 8 positions, 0.0 to 1.5 s]",
        "w9",
    ]
    found, text, source = highest_rows(filmed())[0]
    assert (text, source, found.score) == ("slot 3 of 8", "video 1", 0.9)
