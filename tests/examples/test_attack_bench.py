"""The table of attacks: what is found, what stands beside it, and an earlier report."""

from __future__ import annotations

import json
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"
MADE = Path(__file__).parents[1] / "report" / "test_attack.py"


@pytest.fixture(scope="module")
def bench() -> Any:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import attack_bench as module
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


@pytest.fixture(scope="module")
def made() -> Any:
    """What the page's tests make reports of."""
    spec = spec_from_file_location("made_up_attacks", MADE)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def reports(made: Any) -> tuple[Any, Any]:
    now = made.report.__wrapped__()  # the fixture's function
    hits = (14, 2, 12, 6, 16, 0)
    rows = [
        row.model_copy(update={"hit": made.share(n) if row.n else None})
        for row, n in zip(now.rows, hits, strict=True)
    ]
    return now, now.model_copy(update={"rows": tuple(rows)})


def test_a_row_an_attack_with_what_was_before(bench: Any, made: Any) -> None:
    now, then = reports(made)
    lines = list(bench.table(now, then, made.row("pixel noise", "gradients", 2)))
    (head,) = (line for line in lines if line.startswith("| attack | n |"))
    assert "flagged or steered, before | flagged or steered, now |" in head
    (upside, _) = (line for line in lines if line.startswith("| upside down"))
    assert "| 0.10 (0.01-0.32) | 0.20 (0.06-0.44) |" in upside
    assert any("greedy words before (told: last)" in line for line in lines)
    assert any("hit by questions: 0.80 at 1, 0.75 at 10, 0.70 at 200" in line for line in lines)
    alone = list(bench.table(now, None, made.row("pixel noise", "gradients", 2)))
    assert "before" not in "\n".join(line for line in alone if line.startswith("| attack"))


def test_readings_stand_beside_benign_inputs_under_the_same(bench: Any, made: Any) -> None:
    now, _ = reports(made)
    lines = list(bench.table(now, None, made.row("pixel noise", "gradients", 2)))
    (_, by_reading) = (line for line in lines if line.startswith("| upside down"))
    assert by_reading.count("0.20 (0.05) **defeated**") == len(bench.SHOWN)


def test_inputs_are_short_texts_of_either_label(bench: Any, tmp_path: Path) -> None:
    (tmp_path / "text").mkdir()
    for label in ("harmful", "harmless"):
        rows = [
            {"id": f"{label}-{i}", "text": "a" * (20 + 30 * i), "label": label} for i in range(5)
        ]
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "text" / f"{label}_test.jsonl").write_text(lines)
    found = bench.inputs(tmp_path, 3)
    assert {label: len(some) for label, some in found.items()} == {"harmful": 3, "harmless": 3}
    assert all(one.id.startswith("harmless-") for one in found["harmless"])
