"""The page in a real browser: offline, light, dark, on a phone and on paper."""

from __future__ import annotations

import io
import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from guardrail.evaluation.schema import Report
from guardrail.explain.page import explanation_page
from guardrail.report import evaluation_page
from guardrail.report.drift import drift_page
from guardrail.report.page import write_page
from tests.explain.made import explanation
from tests.in_browser import CONTRAST, CUT_OFF, OVERFLOWING_TEXT, OVERLAPPING_TEXT, pages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, Page

# the driver is a child process on a socket pair; the page itself is a file
pytestmark = pytest.mark.enable_socket

SIZES = """() => [...document.querySelectorAll('svg.drawn')].map(svg => {
  const box = svg.getBoundingClientRect(); return [box.width, box.height];
})"""
HIDDEN = """() => [...document.querySelectorAll('details .facts, details .terms, details table')]
  .filter(node => !node.checkVisibility({contentVisibilityAuto: true})
    || node.getBoundingClientRect().height === 0).length"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, report: Callable[..., Any]) -> Path:
    """The page of a report whose texts are as awkward as they come."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "pictures").mkdir()
    for place in range(2):
        Image.linear_gradient("L").save(folder / "pictures" / f"{place}.png")
    made = report()
    for item in made["items"][:60:7]:
        item["text"] = f"{'unbroken' * 40} <b>&amp;</b>\n\u202eright to left\u202c \u4e2d\u6587"
        item["action"] = "pass"
    made["groups"][-1]["name"] = "a-category-with-a-very-long-name-" * 4
    write_page(folder / "page.html", evaluation_page(Report.model_validate(made), base=folder))
    return folder / "page.html"


@pytest.fixture
def opened(browser: Browser, file: Path) -> Iterator[Callable[..., Page]]:
    """See `pages`."""
    with pages(browser, file.as_uri()) as open_page:
        yield open_page


def colours(page: Page) -> tuple[str, str]:
    found = page.evaluate(
        "() => { const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]; }"
    )
    return found[0], found[1]


def test_the_page_asks_for_nothing_even_when_it_is_read_to_the_end(opened):
    page = opened()
    late: list[str] = []
    page.on("request", lambda request: late.append(request.url))
    page.evaluate("() => window.scrollTo(0, document.body.scrollHeight)")
    for summary in page.query_selector_all("summary"):
        summary.click()
    page.wait_for_load_state("networkidle")
    assert [url for url in late if not url.startswith("data:")] == []


def test_the_policy_stops_what_a_script_or_a_picture_from_elsewhere_would_do(browser, file):
    evil = file.with_name("evil.html")
    text = file.read_text("utf-8")
    added = "<script>document.title = 'owned'</script><img src='http://127.0.0.1:9/x.png'>"
    evil.write_text(text.replace("</main>", added + "</main>"), "utf-8")
    page = browser.new_page()
    reached: list[str] = []
    page.on("response", lambda response: reached.append(response.url))
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.goto(evil.as_uri())
    title = page.title()
    page.close()
    assert title != "owned"
    assert not [url for url in reached if url.startswith("http")]
    assert sum("Content Security Policy" in line for line in refused) == 2


def test_dark_and_light_differ_and_both_can_be_read(opened):
    seen = set()
    for scheme in ("light", "dark"):
        page = opened(color_scheme=scheme)
        seen.add(colours(page))
        for selector in ("p, td, th, li, dt, dd, figcaption, summary, nav a, h2", "svg.drawn text"):
            found = page.evaluate(CONTRAST, selector)
            assert found
            assert min(found) >= 4.5, (scheme, selector)
    (ink, paper), (other_ink, other_paper) = seen
    assert ink != other_ink
    assert paper != other_paper


@pytest.mark.parametrize("width", [320, 375, 700, 1280])
def test_nothing_but_a_tables_own_box_scrolls_sideways(opened, width):
    page = opened(width)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    outside = page.evaluate(
        "w => [...document.querySelectorAll('body *')].filter(n => !n.closest('.scroll') &&"
        " n.getBoundingClientRect().right > w + 1 && n.getBoundingClientRect().width > 0)"
        ".map(n => n.tagName + '.' + n.className)",
        width,
    )
    assert outside == []


@pytest.mark.parametrize("width", [320, 390])
def test_nothing_is_cut_on_a_phone(opened, width):
    page = opened(width)
    assert page.evaluate(CUT_OFF) == []
    heads = page.evaluate(
        "() => [...document.querySelectorAll('#separation td')].slice(0, 3).map("
        "n => getComputedStyle(n, '::before').content)"
    )
    assert heads == ['"Harmful"', '"Harmless"', '"AUROC"']


@pytest.mark.parametrize("kind", ["drift", "explain"])
def test_nothing_of_the_other_pages_is_cut_on_a_phone(browser, tmp_path, kind):
    if kind == "drift":
        made = _beside("../cli/test_drift.py").report("refit", transport=True)
        html = drift_page(made)
    else:
        html = explanation_page(explanation())
    write_page(tmp_path / "page.html", html)
    with pages(browser, (tmp_path / "page.html").as_uri()) as open_page:
        assert open_page(390).evaluate(CUT_OFF) == []


def _beside(name: str) -> Any:
    """A module of tests, for what it makes."""
    path = Path(__file__).parent / name
    spec = spec_from_file_location(f"made_by_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("width", [375, 1280])
def test_figures_are_visible_and_keep_their_words_inside(opened, width):
    page = opened(width)
    sizes = page.evaluate(SIZES)
    assert len(sizes) == 11
    assert all(wide > 200 and high > 80 for wide, high in sizes)
    assert page.evaluate(OVERFLOWING_TEXT) == []
    assert page.evaluate(OVERLAPPING_TEXT) == []


def test_paper_is_light_and_shows_what_the_screen_folds_away(opened):
    page = opened(794, color_scheme="dark")
    assert page.evaluate(HIDDEN) > 0
    dark = colours(page)
    page.emulate_media(media="print")
    assert colours(page) != dark
    assert colours(page)[1] == "rgb(255, 255, 255)"
    assert page.evaluate(HIDDEN) == 0
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 794
    pages = page.pdf(format="A4")
    assert pages.startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", pages)) <= 40


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_screenshot_is_not_blank(opened, scheme):
    page = opened(color_scheme=scheme)
    figures = page.query_selector_all("svg.drawn")
    assert len(figures) >= 4
    for figure in figures[:4]:
        with Image.open(io.BytesIO(figure.screenshot())) as shot:
            found = shot.convert("RGB").getcolors(shot.width * shot.height)
        assert len(found) > 20
        ground = max(found)[0] / (shot.width * shot.height)
        assert 0.3 < ground < 0.99


def test_pictures_of_inputs_are_shown(opened):
    page = opened()
    found = page.evaluate(
        "() => [...document.images].map(i => [i.complete, i.naturalWidth, i.clientWidth])"
    )
    assert found
    assert all(complete and natural > 0 and shown > 40 for complete, natural, shown in found)


def test_the_page_can_be_walked_with_the_keyboard(opened):
    page = opened()
    tables = page.evaluate("() => [...document.querySelectorAll('.scroll')].map(n => n.tabIndex)")
    assert set(tables) == {0}
    page.click("nav a[href='#terms']")
    top = page.evaluate("() => document.querySelector('#terms').getBoundingClientRect().top")
    assert top < 900
