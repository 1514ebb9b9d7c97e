"""The table of families is made from reports alone."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from guardrail.conformance import Check, Outcome, Report
from tests.conformance.every_check import EVERY_CHECK

if TYPE_CHECKING:
    from types import ModuleType

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def families() -> ModuleType:
    place = ROOT / "examples/benchmarks/families.py"
    spec = importlib.util.spec_from_file_location("example_families", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.path.insert(0, str(place.parent))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    return module


def report(architecture: str, **outcomes: tuple[Outcome, str]) -> Report:
    checks = []
    for definition in EVERY_CHECK:
        outcome, reason = outcomes.get(definition.name, (Outcome.YES, None))
        shown = {"shown": "frames"} if definition.name == "video" else {}
        checks.append(
            Check(
                name=definition.name,
                title=definition.title,
                outcome=outcome,
                reason=reason,
                figures=shown,
            )
        )
    return Report(
        architecture=architecture,
        source="in memory",
        layers=4,
        d_model=32,
        dtype="float32",
        device="cpu",
        pictures=True,
        packages={"torch": "9.8", "transformers": "7.6"},
        checks=tuple(checks),
    )


def test_a_reason_has_one_number_whatever_the_class_is_called(families: ModuleType) -> None:
    made = {
        name: report(name, beams=(Outcome.NO, f"{name} has none"), static=(Outcome.NO, f"{name}!"))
        for name in ("One", "Two")
    }
    head, _, *rows = (line for line in families.table(made) if line.startswith("|"))
    columns = head.strip("| ").split(" | ")
    for row in rows:
        cells = dict(zip(columns, row.strip("| ").split(" | "), strict=True))
        assert (cells["static cache"], cells["beams"]) == ("no [1]", "no [2]")
        assert (cells["score"], cells["video"]) == ("yes", "frames")
    reasons = [line for line in families.table(made) if line[:2] in ("1.", "2.", "3.")]
    assert reasons == ["1. the model's class!", "2. the model's class has none"]


def test_the_versions_stand_below_the_table(families: ModuleType) -> None:
    text = "\n".join(families.table({"one": report("One")}))
    assert "with torch 9.8, transformers 7.6" in text


def test_every_check_has_a_heading(families: ModuleType) -> None:
    assert list(families.HEADS) == [definition.name for definition in EVERY_CHECK]


@pytest.mark.parametrize(("outcome", "code"), [(Outcome.NO, 0), (Outcome.FAILED, 1)])
def test_a_wrong_result_is_told_and_ends_with_1(
    outcome: Outcome,
    code: int,
    families: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- table: families -->\nold\n<!-- end -->\nz\n", "utf-8")
    made = report("One", beams=(outcome, "it is so"))
    monkeypatch.setattr(families, "check_everything", lambda *_: made)
    monkeypatch.setattr(families, "tiny_model", lambda _: ())
    monkeypatch.setattr(families, "FAMILIES", ("one", "two"))
    monkeypatch.setattr(sys, "argv", ["families.py", "--readme", str(readme)])
    monkeypatch.setattr(families.torch, "set_num_threads", lambda _: None)
    assert families.main() == code
    assert f"| {outcome} [1] |" in readme.read_text("utf-8")
    assert "old" not in readme.read_text("utf-8")
    assert ("beams: it is so" in capsys.readouterr().err) == bool(code)
