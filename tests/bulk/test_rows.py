from __future__ import annotations

import re
from dataclasses import fields

import pytest

from guardrail.bulk.rows import ROW_FIELDS, VERDICT_FIELDS, has_failed, out_row
from guardrail.errors import (
    GuardClosedError,
    ImageDecodeError,
    InputError,
    MissingExtraError,
    RequestTimeoutError,
)
from guardrail.types import Action, Modality, Verdict, Where, Window

# The same for every row of an artefact, or of an edit that a check never makes.
LEFT_OUT = {"layers", "strength", "steering_layer"}


def verdict(**changes):
    facts = {
        "action": Action.PASS,
        "would_be": Action.FLAG,
        "score": 1.25,
        "tau_steer": 0.5,
        "tau_flag": 1.0,
        "layers": (1,),
        "modality": Modality.VIDEO,
        "artefact_id": "guard-x",
        "mode": "shadow",
    }
    return Verdict(**(facts | changes))


def test_a_verdict_is_kept_whole_with_the_piece_of_video_it_is_from():
    window = Window(number=1, of=3, start_s=2.0, end_s=3.5, frames=4)
    row = out_row(4, "k", verdict(window=window), "guard-x")
    assert tuple(row) == tuple(ROW_FIELDS)
    assert (row["row"], row["key"], row["action"], row["would_be"]) == (4, "k", "pass", "flag")
    assert (row["score"], row["modality"], row["mode"]) == (1.25, "video", "shadow")
    assert row["folded"] is False
    assert out_row(4, "k", verdict(folded=True), "guard-x")["folded"] is True
    assert (row["window_start_s"], row["window_end_s"]) == (2.0, 3.5)
    assert (row["reason"], row["error"], row["error_type"]) == ("score", None, None)
    assert not has_failed(row)


def test_a_row_says_where_its_score_is_from_and_not_in_what_words():
    where = Where(
        reading="window", message=1, role="tool", part=0, start=3, stop=9, words="pick a lock"
    )
    row = out_row(4, "k", verdict(where=where), "guard-x")
    assert {name: row[name] for name in row if name.startswith("where_")} == {
        "where_reading": "window",
        "where_message": 1,
        "where_role": "tool",
        "where_part": 0,
        "where_start": 3,
        "where_stop": 9,
    }
    assert "lock" not in str(row)
    none = out_row(4, "k", verdict(), "guard-x")
    assert {none[name] for name in none if name.startswith("where_")} == {None}


def test_no_field_of_a_verdict_is_left_out_unawares():
    kept = {re.sub("^(window|where)_.*", r"\1", name) for name in VERDICT_FIELDS}
    assert {field.name for field in fields(Verdict)} - kept == LEFT_OUT


def test_an_outage_is_a_row_that_says_so():
    row = out_row(0, "k", verdict(score=None, reason="detector_failed"), "guard-x")
    assert (row["reason"], row["score"]) == ("detector_failed", None)
    assert has_failed(row)


@pytest.mark.parametrize(
    ("error", "reason", "kind"),
    [
        (ImageDecodeError("no\n\x1b[31mpicture"), "unreadable", "ImageDecodeError"),
        (RequestTimeoutError("late"), "failed", "RequestTimeoutError"),
        (RuntimeError("shapes of 'my secret prompt'"), "failed", "RuntimeError"),
    ],
)
def test_an_error_is_a_row_without_action_or_score(error, reason, kind):
    row = out_row(0, "k", error, "guard-x")
    assert (row["reason"], row["error_type"]) == (reason, kind)
    assert row["action"] is None
    assert row["score"] is None
    assert row["artefact_id"] == "guard-x"
    assert "secret" not in row["error"]
    assert "\x1b" not in row["error"]


def test_a_long_message_is_cut():
    assert len(out_row(0, "k", InputError("x" * 10_000), "g")["error"]) == 500


@pytest.mark.parametrize(
    "error", [GuardClosedError("closed"), MissingExtraError("av", extra="video")]
)
def test_an_error_that_would_meet_every_row_ends_the_run(error):
    with pytest.raises(type(error)):
        out_row(0, "k", error, "g")
