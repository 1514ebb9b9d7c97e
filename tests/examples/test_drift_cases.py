"""The table of changed checkpoints, without the checkpoints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def cases() -> Any:
    sys.path.insert(0, str(EXAMPLES))
    try:
        import drift_cases
    finally:
        sys.path.remove(str(EXAMPLES))
    return drift_cases


def test_every_case_is_told_in_one_row(cases: Any) -> None:
    estimate = {"value": 0.93, "low": 0.9, "high": 0.95}
    figures = {
        "separation": {"fitted": None, "old": estimate, "best": estimate, "n": 96},
        "rates": [
            {"label": "safe", "action": "flag", "modality": "text",
             "now": {"hits": 3, "n": 90}, "fitted": {"hits": 2}},
            {"label": "safe", "action": "steer", "modality": "text",
             "now": {"hits": 9, "n": 90}, "fitted": None},
        ],
    }  # fmt: skip
    moved = {"auroc_before": 0.61, "auroc_after": 0.935}
    found = [
        cases.Outcome("a", ("keep",), "keep", True, (), figures, repaired="fingerprint"),
        cases.Outcome("b", ("keep",), "refit", False, (), figures, moved, "transported"),
        cases.Outcome("c", (cases.ERROR,), cases.ERROR, True, ("none",)),
    ]
    head, line, *rows = cases.table(found)
    assert head.count("|") == line.count("|") == 8
    assert all(row.count("|") == 8 for row in rows)
    assert "| yes | -, 0.930 (0.900-0.950), 0.930 (n = 96) | text 3/90 (then 2) |" in rows[0]
    assert "| **no** |" in rows[1]
    assert "transported: text AUROC 0.610 to 0.935" in rows[1]
    assert f"| c | {cases.ERROR} | yes | - | - | - |" in rows[2]


def test_the_other_template_differs_in_both_places(cases: Any) -> None:
    system = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
    made = cases.other_template(f"{system}<|im_start|>assistant\n")
    assert made == f"{cases.SYSTEM}<|im_start|>assistant\nWell, "


def test_every_case_says_what_is_right(cases: Any) -> None:
    known = {"keep", "recalibrate", "refit", cases.ERROR}
    assert all(case.right and set(case.right) <= known for case in cases.CASES)
    assert len({case.name for case in cases.CASES}) == len(cases.CASES)
