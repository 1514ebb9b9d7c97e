from __future__ import annotations

from typing import Any

import pytest

from guardrail.attack.schema import PLAIN, AttackReport, AttackRow, BudgetPoint, ReadingFigures
from guardrail.report.attack import READINGS, attack_page, summary
from guardrail.report.page import write_page
from guardrail.stats import Rate, Share
from tests.in_browser import CONTRAST, CUT_OFF, pages


def share(hits: int, n: int = 20) -> Share:
    return Share.of(Rate(hits, n))


def row(name: str, family: str = "encoding", hits: int = 15, **more: Any) -> AttackRow:
    reading = ReadingFigures(
        found={"0.01": share(10), "0.05": share(hits)},
        benign={"0.01": share(0), "0.05": share(1)},
        before=share(16),
        standing="defeated" if hits < 8 else "holds",
    )
    made: dict[str, Any] = {
        "name": name,
        "family": family,
        "about": f"What {name} is <b>.",
        "n": 20,
        "n_benign": 20,
        "hit": share(hits),
        "flagged": share(2),
        "before": share(16),
        "lost": share(max(16 - hits, 0)),
        "benign_hit": share(1),
        "readings": dict.fromkeys(READINGS, reading),
        "fall": 0.25,
        "complied": share(4, 10),
        "through": share(1, 10),
        "seconds": 1.0,
    }
    return AttackRow(**(made | more))


@pytest.fixture(scope="module")
def report() -> AttackReport:
    points = tuple(BudgetPoint(questions=q, hit=share(16 - i)) for i, q in enumerate((1, 10, 200)))
    search = {"aim": "joint", "budgets": points, "asked": 200.0, "late": 1}
    rows = (
        row(PLAIN, "", 16, lost=share(0)),
        row("upside down", hits=4),
        row("greedy words before", "words", 12, **search),
        row("greedy words before", "words", 6, **(search | {"aim": "last"})),
        row("mine & <i>", "own", 16, example="sent <script>alert(1)</script>"),
        row("drawn", "placing", 0, n=0, hit=None, readings={}, left_out={"it <reads> text": 20}),
    )
    return AttackReport(
        created="2026-01-02T03:04:05+00:00",
        guardrail_version="1",
        model="a <model>",
        artefact_id="guard-1",
        thresholds={"text": {"steer": 0.5, "flag": 0.75}},
        reading_thresholds={"text": {"joint": {"0.01": 0.8, "0.05": 0.6}}},
        n_harmful=20,
        n_benign=20,
        settings={"questions": 200, "seed": 0},
        rows=rows,
        warnings=("few & far <between>",),
    )


def test_the_page_escapes_what_it_is_given_and_asks_for_nothing(report: AttackReport) -> None:
    page = attack_page(report)
    assert "a &lt;model&gt;" in page
    assert "sent &lt;script&gt;" in page
    assert "<script" not in page
    assert "few &amp; far" in page
    assert "default-src 'none'" in page


def test_the_summary_says_what_is_lost_and_what_gets_through(report: AttackReport) -> None:
    first, second, third = summary(report)
    assert first == (
        "As they are, 16 of 20 harmful inputs are flagged or steered, and 1 of 20 benign ones."
    )
    assert second.startswith(
        "The attacks that take most from that, by inputs lost: upside down: 12"
    )
    assert "4 were both complied with and let through" in third


def test_each_reading_names_what_defeats_it(report: AttackReport) -> None:
    page = attack_page(report)
    told = "upside down, greedy words before (told: last)"
    assert page.count(f"defeated by {told}.") == len(READINGS)


def test_every_share_has_its_count_and_interval(report: AttackReport) -> None:
    page = attack_page(report)
    for shown in ("4 of 20", "12 of 20", "0 of 20", "1 of 10", "it &lt;reads&gt; text", "0.2500"):
        assert shown in page, shown
    assert page.count('class="drawn"') == 2
    assert attack_page(AttackReport.from_json(report.model_dump_json())) == page


def test_a_run_without_searches_has_no_curves(report: AttackReport) -> None:
    rows = tuple(one.model_copy(update={"budgets": ()}) for one in report.rows)
    page = attack_page(report.model_copy(update={"rows": rows}))
    assert page.count('class="drawn"') == 1
    assert 'id="budgets"' not in page


@pytest.mark.enable_socket
@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_can_be_read_in_light_and_dark_and_on_a_phone(
    browser: Any, tmp_path: Any, report: AttackReport, width: int, scheme: str
) -> None:
    write_page(tmp_path / "page.html", attack_page(report))
    with pages(browser, (tmp_path / "page.html").as_uri()) as opened:
        page = opened(width, color_scheme=scheme)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        if width < 400:
            assert page.evaluate(CUT_OFF) == []
        for selector in ("p, td, th, li, dt, dd, figcaption, summary, h2", "svg.drawn text"):
            assert min(page.evaluate(CONTRAST, selector)) >= 4.5, selector
