"""A page is escaped, complete, or not there at all."""

from __future__ import annotations

import os
import re
from importlib.resources import files

import pytest
from jinja2 import DictLoader, UndefinedError

from guardrail.report import page


@pytest.fixture
def template(monkeypatch):
    """`template(source)` makes the source the page's only template."""

    def use(source: str) -> None:
        monkeypatch.setattr(page._environment(), "loader", DictLoader({"x.html.j2": source}))

    yield use
    page._environment.cache_clear()


def test_text_is_escaped_whatever_the_templates_name_ends_with(template):
    template("<p>{{ words }}</p>")
    assert page.render("x.html.j2", words='<b>&"') == "<p>&lt;b&gt;&amp;&#34;</p>"


def test_a_name_that_is_not_given_is_an_error(template):
    template("{{ words }}")
    with pytest.raises(UndefinedError, match="words"):
        page.render("x.html.j2")


def test_cells_of_a_table_tell_their_columns_heads_past_those_that_span_several(template):
    template(
        "{% macro t(heads) %}{{ caller() | labelled(heads) }}{% endmacro %}"
        "{% call t(heads) %}<tr><th scope='row'>{{ word }}</th>"
        '<td colspan="2">1</td><td>2</td></tr>'
        "<tr><td class='num'>3</td></tr>{% endcall %}"
    )
    found = page.render("x.html.j2", heads=["a", "b", "c", 'd"<'], word="<td>")
    assert re.findall(r'<t[hd] data-head="([^"]*)"', found) == ["a", "b", "d&#34;&lt;", "a"]
    assert "&lt;td&gt;" in found


def test_no_template_marks_text_as_safe_or_reaches_for_anything():
    found = [f for f in files("guardrail.report").joinpath("templates").iterdir() if f.is_file()]
    assert {"base.css", "base.html.j2", "macros.html.j2", "evaluation.html.j2"} <= {
        f.name for f in found
    }
    for file in found:
        source = file.read_text()
        forbidden = (
            r"\|\s*safe\b|autoescape false|<script|\bon\w+=|https?:|@import|url\(|\bsrc=\"(?!\{\{)"
        )
        assert not re.search(forbidden, source), file.name


def test_the_page_allows_no_request(report):
    from guardrail.evaluation.schema import Report
    from guardrail.report import evaluation_page

    policy = re.search(
        r'Content-Security-Policy" content="([^"]+)"',
        evaluation_page(Report.model_validate(report(4))),
    )
    assert policy is not None
    assert "default-src 'none'" in policy[1]
    assert "script-src" not in policy[1]


def test_a_page_is_written_with_its_folder_and_read_back_equal(tmp_path):
    page.write_page(tmp_path / "new" / "page.html", "<p>\u00e9\u4e2d</p>")
    assert (tmp_path / "new" / "page.html").read_text("utf-8") == "<p>\u00e9\u4e2d</p>"


def test_what_utf8_cannot_hold_becomes_a_reference(tmp_path):
    page.write_page(tmp_path / "page.html", "<p>\ud800</p>")
    assert (tmp_path / "page.html").read_bytes() == b"<p>&#55296;</p>"


def test_a_failed_write_leaves_the_old_page_and_no_other_file(tmp_path, monkeypatch):
    target = tmp_path / "page.html"
    target.write_text("old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        page.write_page(target, "new")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["page.html"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "real.html").write_text("old")
    (tmp_path / "link.html").symlink_to("real.html")
    page.write_page(tmp_path / "link.html", "new")
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "real.html").read_text() == "new"


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        (page.figure(0.93149), "0.931"),
        (page.figure(-0.5, 1), "\u22120.5"),
        (page.figure(None), "\u2013"),
        (page.figure(float("nan")), "\u2013"),
        (page.percent(0.125), "12.5\u00a0%"),
        (page.percent(None), "\u2013"),
        (page.points(0.55), "+55.0"),
        (page.points(-0.025), "\u22122.5"),
        (page.count(12345), "12\u202f345"),
        (page.small(0.000123456), "0.000123"),
        (page.small(None), "\u2013"),
        (page.duration(0.4212), "0.42 s"),
        (page.duration(42.4), "42 s"),
        (page.duration(185), "3 min 05 s"),
        (page.tied("95 % of 100 %"), "95\u00a0% of 100\u00a0%"),
        (page.moment("2025-05-01T12:00:00+02:00"), "1 May 2025, 10:00 UTC"),
        (page.moment("2025-05-01T12:00:00"), "1 May 2025, 12:00"),
        (page.moment("some day"), "some day"),
    ],
)
def test_a_number_is_written(written, wanted):
    assert written == wanted
