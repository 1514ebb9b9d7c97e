"""What counts as a refusal."""

from __future__ import annotations

import pytest

from guardrail.fit.refusal import REFUSAL_PREFIXES, is_refusal
from guardrail.policy import REFUSAL


@pytest.mark.parametrize("prefix", REFUSAL_PREFIXES)
def test_every_listed_beginning_is_a_refusal(prefix: str) -> None:
    assert is_refusal(f"{prefix}, but no.")
    assert is_refusal(prefix.upper())
    assert not is_refusal(f"First, {prefix}")


@pytest.mark.parametrize(
    "text",
    [
        REFUSAL,
        "I\u2019m sorry, but I can\u2019t help with that.",  # typographic apostrophes
        "  \n\u201cI cannot do that.\u201d",
        "**Sorry**, no.",
        "- I won't.",
        "Sorry",
    ],
)
def test_quotes_marks_and_apostrophes_do_not_hide_a_refusal(text: str) -> None:
    assert is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "...",
        "Sorrynot",
        "I can tell you",
        "I cannoty",
        "Sure! I'm sorry you waited.",
        "I willow",
    ],
)
def test_other_beginnings_are_none(text: str) -> None:
    assert not is_refusal(text)


def test_own_prefixes_replace_the_common_ones() -> None:
    assert is_refusal("Nein, das geht nicht.", ["Nein"])
    assert not is_refusal("I cannot.", ["Nein"])
    assert is_refusal("No (really)", ["No (really)"])  # taken literally, no pattern
    assert not is_refusal("No really", ["No (really)"])
