from __future__ import annotations

from guardrail.bulk.parts import Parts
from guardrail.bulk.summary import summarise


def row(number, **facts):
    return {"row": number, "key": "k", "reason": "score", "modality": "text"} | facts


ROWS = [
    row(0, action="pass", would_be="pass"),
    row(1, action="pass", would_be="flag"),
    row(2, action="flag", would_be="flag", modality="image"),
    row(3, action="flag", would_be="flag", reason="detector_failed"),
    row(4, modality=None, reason="unreadable", error_type="ImageDecodeError"),
    row(5, modality=None, reason="failed", error_type="RequestTimeoutError"),
]


def test_rows_are_counted_by_what_became_of_them(tmp_path):
    parts = Parts(out=tmp_path, rows=6, size=3, output="jsonl")
    for number in range(2):
        parts.write(number, [{"error_type": None, **ROWS[n]} for n in parts.span(number)])
    assert summarise(parts, [0, 1]).to_dict() == {
        "rows": 6,
        "of": 6,
        "complete": True,
        "scored": 3,
        "flagged": 2,
        "unreadable": 1,
        "failed": 2,
        "actions": {"image": {"flag": 1}, "text": {"pass": 2}},
        "would_be": {"image": {"flag": 1}, "text": {"flag": 1, "pass": 1}},
        "errors": {"ImageDecodeError": 1, "RequestTimeoutError": 1, "detector_failed": 1},
    }


def test_a_shards_summary_says_that_others_are_left(tmp_path):
    parts = Parts(out=tmp_path, rows=6, size=3, output="jsonl")
    parts.write(1, [{"error_type": None, **ROWS[n]} for n in parts.span(1)])
    found = summarise(parts, [1])
    assert (found.rows, found.of, found.complete) == (3, 6, False)
