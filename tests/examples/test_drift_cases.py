"""The table of changed checkpoints, without the checkpoints."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"


@pytest.fixture(scope="module")
def cases() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import drift_cases
    finally:
        sys.path.remove(str(BENCHMARKS))
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


@pytest.fixture
def ran(cases: Any, monkeypatch: Any) -> Any:
    """`ran(out, "b", artefact="x")`: a run of three cases whose outcomes cost nothing."""
    from types import SimpleNamespace

    made = tuple(cases.Case(name, lambda old, _: old, ("keep",)) for name in ("a", "b", "bc"))
    monkeypatch.setattr(cases, "CASES", made)
    monkeypatch.setattr(cases, "load_model", lambda *_args, **_options: None)

    def run(
        out: Path,
        only: str = "",
        *,
        artefact: str = "x",
        verdict: str = "keep",
        resume: bool = False,
    ) -> None:
        found = SimpleNamespace(artefact_id=artefact)
        monkeypatch.setattr(cases.Artefact, "load", lambda _path: found)
        monkeypatch.setattr(
            cases,
            "outcome",
            lambda case, *_: cases.Outcome(case.name, case.right, verdict, True, ("so",)),
        )
        cases.main(Path("model"), Path("artefact"), out, per_kind=0, only=only, resume=resume)

    return run


def told(out: Path) -> dict[str, str]:
    rows = json.loads((out / "drift_cases.json").read_text())["cases"]
    table = (out / "drift_cases.md").read_text().splitlines()[2:]
    pairs = [tuple(cell.strip() for cell in line.split("|")[1:3]) for line in table]
    assert pairs == [(row["name"], row["verdict"]) for row in rows]
    return dict(pairs)


def test_some_cases_run_again_leave_the_others_in_place(ran: Any, tmp_path: Path) -> None:
    ran(tmp_path)
    ran(tmp_path, "b", verdict="refit")
    assert list(told(tmp_path).items()) == [("a", "keep"), ("b", "refit"), ("bc", "refit")]
    ran(tmp_path)
    assert set(told(tmp_path).values()) == {"keep"}


def test_a_resumed_run_makes_what_is_missing(ran: Any, tmp_path: Path) -> None:
    ran(tmp_path, "b")
    ran(tmp_path, verdict="refit", resume=True)
    assert told(tmp_path) == {"a": "refit", "b": "keep", "bc": "keep"}
    ran(tmp_path, artefact="y", verdict="refit", resume=True)
    assert set(told(tmp_path).values()) == {"refit"}


@pytest.mark.parametrize("what", ["another artefact", "no JSON", "another form"])
def test_rows_of_another_run_are_not_mixed_in(ran: Any, tmp_path: Path, what: str) -> None:
    ran(tmp_path, artefact="y")
    if what != "another artefact":
        rows = "{" if what == "no JSON" else json.dumps({"artefact": "x", "cases": [{"name": "a"}]})
        (tmp_path / "drift_cases.json").write_text(rows)
    ran(tmp_path, "b", verdict="refit")
    assert told(tmp_path) == {"b": "refit", "bc": "refit"}


def test_a_name_that_fits_no_case_is_refused(ran: Any, tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match="no case's name contains 'z'"):
        ran(tmp_path, "z")
