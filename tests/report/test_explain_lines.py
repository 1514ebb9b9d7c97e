"""Runs of text in lines of a fixed-width font."""

from __future__ import annotations

from itertools import pairwise

from guardrail.report.explain_lines import lines_of
from guardrail.report.heat import Mark


def test_lines_hold_all_text_and_break_only_where_they_must():
    made = [
        Mark(text="aaaa", kind="text"),
        Mark(text="bbbbbbb", kind="text", after="\n"),
        Mark(text="c" * 25, kind="text"),
        Mark(text="\N{CJK UNIFIED IDEOGRAPH-6F22}" * 6, kind="text"),
    ]
    lines = lines_of(made, columns=10)
    assert [[piece.text for piece in line] for line in lines] == [
        ["aaaa"],
        ["bbbbbbb"],
        ["c" * 10],
        ["c" * 10],
        ["c" * 5, "\u6f22" * 2],
        ["\u6f22" * 4],
    ]
    for line in lines:
        for left, right in pairwise(line):
            assert left.column + left.width == right.column
        assert line[-1].column + line[-1].width <= 10


def test_of_too_many_lines_the_middle_is_left_out_and_counted():
    lines = lines_of([Mark(text=str(i), kind="text", after="\n") for i in range(50)], most=11)
    assert len(lines) == 11
    assert lines[5][0].text == "[40 lines left out]"
    assert lines[-1][0].text == "49"
