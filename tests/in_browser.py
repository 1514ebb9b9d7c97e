"""What a reader of a page in a real browser sees: its contrast, and where its words are."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from playwright.sync_api import Browser, Page

CONTRAST = """selector => {
  const parts = text => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
  const light = text => {
    const [r, g, b] = parts(text).map(v => v / 255)
      .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = node => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (colour !== 'rgba(0, 0, 0, 0)') return colour;
    }
    return 'rgb(255, 255, 255)';
  };
  return [...document.querySelectorAll(selector)].map(node => {
    const style = getComputedStyle(node);
    const ink = node instanceof SVGElement ? style.fill : style.color;
    const [low, high] = [light(ink), light(ground(node))].sort((a, b) => a - b);
    return (high + 0.05) / (low + 0.05);
  });
}"""
OVERFLOWING_TEXT = """() => [...document.querySelectorAll('svg.drawn')].flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  return [...svg.querySelectorAll('text')].filter(text => {
    const box = text.getBoundingClientRect();
    return box.left < frame.left - 1 || box.right > frame.right + 1
      || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
  }).map(text => svg.querySelector('title').textContent + ': ' + text.textContent);
})"""
OVERLAPPING_TEXT = """() => [...document.querySelectorAll('svg.drawn')].flatMap(svg => {
  const texts = [...svg.querySelectorAll('text')].map(t => [t.textContent,
    t.getBoundingClientRect()]);
  return texts.flatMap(([one, a], i) => texts.slice(i + 1).filter(([, b]) =>
    Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2 &&
    Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4
  ).map(([other]) => svg.querySelector('title').textContent + ': ' + one + ' / ' + other));
})"""

# What is beside the window, or hidden inside a box of its own until that is scrolled.
CUT_OFF = """() => {
  for (const folded of document.querySelectorAll('details')) folded.open = true;
  return [...document.querySelectorAll('body *')].filter(node => {
    const box = node.getBoundingClientRect();
    if (!box.width || !box.height) return false;
    const inside = node instanceof SVGElement || getComputedStyle(node).display === 'inline'
      || node.scrollWidth <= node.clientWidth + 1;
    return !inside || box.left < -1 || box.right > document.documentElement.clientWidth + 1;
  }).map(node => node.tagName + ': ' + node.textContent.trim().slice(0, 60));
}"""


@contextmanager
def pages(browser: Browser, base: str) -> Iterator[Callable[..., Page]]:
    """`open_page(width=1280, path="", **context)`: a page, without errors or requests so far."""
    contexts = []

    def open_page(width: int = 1280, *, path: str = "", **options: Any) -> Page:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        asked: list[str] = []
        heard: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: heard.append(message.text))
        page.on("pageerror", lambda error: heard.append(str(error)))
        page.goto(base + path)
        page.wait_for_load_state("networkidle")
        assert heard == []
        assert [one for one in asked if not one.startswith("data:")] == [base + path]
        return page

    yield open_page
    for context in contexts:
        context.close()
