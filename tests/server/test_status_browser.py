"""The status page in a real browser, served by a real server with traffic behind it."""

from __future__ import annotations

import base64
import io
import threading
from functools import partial
from typing import TYPE_CHECKING

import httpx
import pytest
import uvicorn
from PIL import Image

from guardrail.guard import Guard
from guardrail.policy import Policy, Thresholds
from guardrail.server import create_app
from guardrail.server.listening import bound_socket
from guardrail.server.settings import Listening
from guardrail.testing import tiny_artefact
from guardrail.types import Modality
from tests.in_browser import CONTRAST, CUT_OFF, OVERFLOWING_TEXT, OVERLAPPING_TEXT, pages
from tests.waiting import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, Page

pytestmark = pytest.mark.enable_socket  # the driver is a child process on a socket pair


@pytest.fixture(scope="module")
def url(llava) -> Iterator[str]:
    """A server that has judged 130 requests, some of them with a picture."""
    levels = dict.fromkeys(Modality, Thresholds(steer=-0.8, flag=0.0))
    artefact = tiny_artefact(llava.model, llava.processor)
    pair = (llava.model, llava.processor)
    with Guard(pair, artefact, policy=Policy(thresholds=levels)) as guard:
        app = create_app(guard)
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on", ws="none"))
        with bound_socket(Listening(host="127.0.0.1", port=0)) as listening:
            thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
            thread.start()
            address = f"http://127.0.0.1:{listening.getsockname()[1]}"
            try:
                _send_traffic(address, server)
                yield address
            finally:
                server.should_exit = True
                thread.join(20)


def _send_traffic(address: str, server: uvicorn.Server) -> None:
    until(lambda: server.started)
    file = io.BytesIO()
    Image.linear_gradient("L").resize((30, 20)).save(file, "PNG")
    picture = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": picture}}]
    with httpx.Client(base_url=address, timeout=60) as client:
        texts = {"inputs": [{"input": f"{number} hello"} for number in range(120)]}
        message = {"messages": [{"role": "user", "content": content}]}
        for body in (texts, {"inputs": [message] * 10}):
            assert client.post("/v1/checks", json=body).status_code == 200


@pytest.fixture
def opened(browser: Browser, url: str) -> Iterator[Callable[..., Page]]:
    """See `pages`; unless told otherwise, one that does not renew itself."""
    with pages(browser, url) as open_page:
        yield partial(open_page, path="/?refresh=0")


def table(page: Page) -> dict[str, list[str]]:
    """The rows of the table of verdicts, by their names."""
    rows = page.eval_on_selector_all(
        "#verdicts tbody tr", "rows => rows.map(row => [...row.cells].map(c => c.textContent))"
    )
    return {row[0]: row[1:] for row in rows}


@pytest.mark.parametrize("scripts", [True, False])
def test_the_traffic_is_on_it_with_and_without_scripts(opened, url, scripts):
    page = opened(java_script_enabled=scripts)
    with httpx.Client() as client:
        told = client.get(f"{url}/status.json").json()
    if scripts:
        last = told["windows"][-1]
        counts = [last["n"], *(last["actions"][a] for a in ("pass", "steer", "flag")), 0]
        assert table(page)["last 5 minutes"] == [str(count) for count in counts]
        assert sum(counts[1:]) == counts[0] == 130
        assert min(counts[1:4]) > 0
    text = page.text_content("main")
    assert "Scores no longer look like" in text
    assert [t.text_content() for t in page.query_selector_all("svg.drawn title")] == [
        "Scores, text",
        "Scores, image",
    ]
    assert "too few" in text


def test_it_renews_itself_and_stops_when_asked(opened, url):
    page = opened(path="/?refresh=5")
    page.wait_for_event("framenavigated", timeout=15_000)
    page.wait_for_load_state("domcontentloaded")
    page.click("text=stop that")
    page.wait_for_url(f"{url}/?refresh=0")
    assert page.query_selector("meta[http-equiv=refresh]") is None


def test_dark_and_light_differ_and_both_can_be_read(opened):
    grounds = set()
    for scheme in ("light", "dark"):
        page = opened(color_scheme=scheme)
        grounds.add(page.evaluate("() => getComputedStyle(document.body).backgroundColor"))
        for selector in ("p, td, th, dt, dd, li, figcaption, a, h2", "svg.drawn text"):
            found = page.evaluate(CONTRAST, selector)
            assert found
            assert min(found) >= 4.5, (scheme, selector)
    assert len(grounds) == 2


@pytest.mark.parametrize("width", [320, 390])
def test_nothing_of_it_is_cut_on_a_phone(opened, width):
    assert opened(width).evaluate(CUT_OFF) == []


@pytest.mark.parametrize("width", [320, 375, 1280])
def test_it_fits_a_phone_and_a_desk(opened, width):
    page = opened(width)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= width
    assert page.evaluate(OVERFLOWING_TEXT) == []
    assert page.evaluate(OVERLAPPING_TEXT) == []
    sizes = page.evaluate(
        "() => [...document.querySelectorAll('svg.drawn')].map(s => s.clientWidth)"
    )
    assert all(wide > 200 for wide in sizes)


def test_it_can_be_read_out_and_walked_with_the_keyboard(opened):
    page = opened()
    names = page.evaluate(
        "() => [...document.querySelectorAll('svg[role=img]')].map(s => s.getAttribute("
        "'aria-labelledby').split(' ').map(id => document.getElementById(id).textContent))"
    )
    assert len(names) == 2
    assert all(title and description for title, description in names)
    assert page.evaluate("() => document.documentElement.lang") == "en"
    assert page.evaluate("() => document.querySelectorAll('h1').length") == 1
    unnamed = "() => [...document.querySelectorAll('tbody tr')].filter(r => !r.querySelector('th'))"
    assert page.evaluate(f"({unnamed})().length") == 0
    page.keyboard.press("Tab")
    assert page.evaluate("() => document.activeElement.textContent") == "renew it every 30 s"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_its_figures_are_not_blank(opened, scheme):
    page = opened(color_scheme=scheme)
    figures = page.query_selector_all("svg.drawn")
    assert figures
    for figure in figures:
        with Image.open(io.BytesIO(figure.screenshot())) as shot:
            found = shot.convert("RGB").getcolors(shot.width * shot.height)
        assert len(found) > 20
        assert 0.3 < max(found)[0] / (shot.width * shot.height) < 0.99


def test_a_script_put_into_it_would_not_run(opened):
    page = opened()
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text))
    page.evaluate(
        "() => { const s = document.createElement('script'); s.textContent = 'document.title = 1';"
        " document.body.append(s); }"
    )
    assert page.title() == "guarded"
    assert any("Content Security Policy" in line for line in refused)
