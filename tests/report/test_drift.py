from __future__ import annotations

import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from guardrail.drift.schema import DriftReport
from guardrail.errors import ConfigurationError
from guardrail.report.drift import drift_page


@pytest.fixture(scope="module")
def made() -> Any:
    """`made("keep")`: a report with something in every place."""
    path = Path(__file__).parents[1] / "cli" / "test_drift.py"
    spec = spec_from_file_location("made_up_drift_reports", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.report


def test_the_page_asks_for_nothing_and_escapes_what_it_is_given(made: Any) -> None:
    page = drift_page(made("recalibrate"))
    assert "a &lt;model&gt;" in page
    assert "<model>" not in page
    assert "&amp; &lt;more&gt;" in page
    assert "<script" not in page
    assert 'src="http' not in page
    assert "default-src 'none'" in page


@pytest.mark.parametrize(
    ("verdict", "says"),
    [
        ("keep", "still holds on this model"),
        ("recalibrate", "thresholds or what pictures do have moved"),
        ("refit", "no longer hold"),
    ],
)
def test_the_verdict_is_the_title_and_is_explained(made: Any, verdict: str, says: str) -> None:
    page = drift_page(made(verdict))
    assert f"<h1>{verdict.capitalize()}: guard-old</h1>" in page
    assert says in page


def test_every_figure_has_its_count_or_interval(made: Any) -> None:
    page = drift_page(made("refit", transport=True))
    for shown in ("0.930", "0.900 to 0.950", "6 of 56", "48 prompts", "weights_digest", "41.00"):
        assert shown in page, shown
    assert "not a signed permutation" in page
    for shown in ("+0.01", "+0.31", "-0.02", "-0.42"):  # beside a picture, then and now
        assert f">{shown}</td>" in page
    assert page.count('class="drawn"') == 2  # cosines by layer, scores of the one form


def test_sections_without_figures_say_so(made: Any) -> None:
    report = made("keep")
    figures = report.figures.model_copy(update={"steering": None, "pictures": (), "layers": ()})
    page = drift_page(
        report.model_copy(update={"figures": figures, "fingerprint": (), "scores": ()})
    )
    assert "The artefact only detects." in page
    assert "No layer has a direction in both models." in page
    assert "Every field is the same." in page


def test_a_report_read_back_from_its_file_gives_the_same_page(made: Any) -> None:
    report = made("refit", transport=True)
    assert drift_page(DriftReport.from_json(report.model_dump_json())) == drift_page(report)


@pytest.mark.parametrize("wrong", [{"schema_version": 1}, {}])
def test_another_document_is_refused(made: Any, wrong: dict[str, Any]) -> None:
    whole = made("keep").model_dump(mode="json")
    report = whole | wrong if wrong else {"schema_version": 2}
    with pytest.raises(ConfigurationError, match="no drift report of version 2"):
        DriftReport.from_json(json.dumps(report))
