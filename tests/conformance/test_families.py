"""Every family of the catalogue: nothing fails, and the table says what is found."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from guardrail.conformance import Outcome
from guardrail.testing import family, tiny_model
from tests.conformance.every_check import EVERY_CHECK, check_everything
from tests.families.catalogue import FAMILIES, IMAGE_FAMILIES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

    from guardrail.conformance import Report

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"
ALWAYS = {
    *("layers", "score", "unsteered", "steering", "batch", "flag", "prefill", "check"),
    *("stream", "concurrency"),
}
# Those that differ most in how they work; the others need `-m families`.
CORE = {"llava", "qwen3_5", "gemma3", "paligemma", "mllama", "blip2", "llama"}
EVERY = [
    name if name in CORE else pytest.param(name, marks=pytest.mark.families) for name in FAMILIES
]
NUMBER = re.compile(r" \[(\d+)\]$")

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


@pytest.fixture(scope="module", params=EVERY)
def found(request: pytest.FixtureRequest) -> tuple[str, Report]:
    """A family and its whole report."""
    return request.param, check_everything(*tiny_model(request.param))


@pytest.fixture(scope="module")
def example() -> Iterator[ModuleType]:
    folder = str(BENCHMARKS)
    sys.path.insert(0, folder)
    try:
        import families

        yield families
    finally:
        sys.path.remove(folder)


@pytest.fixture(scope="module")
def place() -> list[str]:
    """The lines between the markers of the table of families."""
    text = (BENCHMARKS / "README.md").read_text("utf-8")
    return text.split("<!-- table: families -->")[1].split("<!-- end -->")[0].splitlines()


@pytest.fixture(scope="module")
def rows(place: list[str]) -> dict[str, list[str]]:
    """Cells by family, the class first."""
    lines = [line.strip("| ").split(" | ") for line in place if line.startswith("| ")]
    return {cells[0]: cells[1:] for cells in lines[2:]}


@pytest.fixture(scope="module")
def reasons(place: list[str]) -> dict[int, str]:
    pairs = (line.split(". ", 1) for line in place if re.match(r"\d+\. ", line))
    return {int(number): reason for number, reason in pairs}


def test_no_check_fails(found: tuple[str, Report]) -> None:
    assert found[1].failed == ()
    assert [check.name for check in found[1].checks] == [
        definition.name for definition in EVERY_CHECK
    ]


def test_what_a_guard_is_for_works_wherever_generation_is_transformers_own(
    found: tuple[str, Report],
) -> None:
    name, report = found
    wanted = Outcome.NO if family(name).own_generate else Outcome.YES
    assert {report[check].outcome for check in ALWAYS} == {wanted}


def test_scores_and_edits_are_held_against_what_they_depend_on(found: tuple[str, Report]) -> None:
    name, report = found
    if family(name).own_generate:
        return
    assert report["steering"].figures["reference_tokens"] == 4
    for mode in ("static", "beams"):
        assert report[mode].figures["steered_row"] == "equal"
    if family(name).pictures:  # in units of what the checks let pass
        assert cast("float", report["score"].figures["image_effect"]) > 10
        assert cast("float", report["video"].figures["effect"]) > 10


def test_the_readme_says_what_the_checks_find(
    found: tuple[str, Report],
    example: ModuleType,
    rows: dict[str, list[str]],
    reasons: dict[int, str],
) -> None:
    name, report = found
    made = list(example.table({name: report}))
    cells = made[2].strip("| ").split(" | ")[1:]
    assert [NUMBER.sub("", c) for c in cells] == [NUMBER.sub("", c) for c in rows[name]]
    own = dict(line.split(". ", 1) for line in made if re.match(r"\d+\. ", line))
    for here, there in zip(cells, rows[name], strict=True):
        if number := NUMBER.search(here):
            shown = NUMBER.search(there)
            assert shown is not None
            assert reasons[int(shown[1])] == own[number[1]]


def test_the_families_checked_by_default_are_there() -> None:
    assert set(FAMILIES) > CORE


def test_the_readme_has_a_row_for_every_family(rows: dict[str, list[str]]) -> None:
    assert tuple(rows) == FAMILIES
    assert len(set(rows) & set(IMAGE_FAMILIES)) >= 20
    assert all(len(cells) == 1 + len(EVERY_CHECK) for cells in rows.values())


def test_all_but_a_plain_yes_has_a_reason_in_the_readme(
    rows: dict[str, list[str]], reasons: dict[int, str]
) -> None:
    used = set()
    for cells in rows.values():
        for cell in cells[1:]:
            number = NUMBER.search(cell)
            outcome = NUMBER.sub("", cell)
            assert outcome in {"yes", "no", "n/a", "frames"}
            assert number or outcome in {"yes", "frames"}
            used |= {int(number[1])} if number else set()
    assert used == set(reasons)
    assert all(len(reason) > 20 for reason in reasons.values())
