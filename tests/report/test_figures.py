"""Figures follow the page's theme, keep to themselves and can be read by everybody."""

from __future__ import annotations

import base64
import io
import itertools
import re
import subprocess
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files

import matplotlib
import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from guardrail.errors import MissingExtraError
from guardrail.report.figures import COLOURS, figure, legend, plot_area, png_data, svg


def drawing(label: str = "line"):
    drawn = figure(300, 200)
    axes = plot_area(drawn, x="x", y="y")
    axes.plot([0, 1], [0, 1], label=label)
    axes.fill_between([0, 1], [1, 0], color=COLOURS["safe"], alpha=0.3)
    axes.text(0.5, 0.5, "words", weight="bold")
    legend(axes)
    return drawn


def themes() -> dict[str, dict[str, str]]:
    """The CSS variables of both themes."""
    css = files("guardrail.report").joinpath("templates/base.css").read_text()
    light, dark = re.findall(r":root \{(.*?)\}", css, re.S)[:2]
    first = dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", light))
    return {"light": first, "dark": first | dict(re.findall(r"--([\w-]+): (#[0-9a-f]{6});", dark))}


def linear(colour: str) -> np.ndarray:
    """Linear RGB of an sRGB colour (WCAG 2.2, relative luminance)."""
    parts = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)


def contrast(one: str, other: str) -> float:
    low, high = sorted(float(linear(c) @ [0.2126, 0.7152, 0.0722]) for c in (one, other))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_contrast_with_their_ground_in_both_themes(theme):
    colours = themes()[theme]
    for name in ("ink", "muted", "safe", "unsafe", "accent", "good", "series-1", "series-2"):
        for ground in ("paper", "card"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    assert contrast(colours["warn-ink"], colours["warn-paper"]) >= 4.5
    assert contrast(colours["series-3"], colours["paper"]) >= 3


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_safe_and_unsafe_stay_apart_for_colour_blind_readers(theme):
    # Machado, Oliveira and Fernandes 2009, severity 1, in linear RGB
    deficits = {
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                   [-0.011820, 0.042940, 0.968881]],
        "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.303900]],
    }  # fmt: skip
    colours = themes()[theme]
    for name, matrix in deficits.items():
        safe, unsafe = (
            np.clip(np.array(matrix) @ linear(colours[key]), 0, 1) ** (1 / 2.2)
            for key in ("safe", "unsafe")
        )
        assert np.linalg.norm(safe - unsafe) > 0.25, name


def test_every_stand_in_has_a_variable_in_the_page():
    assert set(COLOURS) <= set(themes()["light"])
    assert set(COLOURS) - {"ink"} <= set(themes()["dark"])


def test_no_colour_of_its_own_is_left_in_a_figure():
    text = svg(drawing(), "title", "description")
    assert not re.search(r"#[0-9a-f]{6}\b|font-family|<style|<metadata|http", text)
    assert {"var(--ink)", "var(--safe)", "var(--grid)", "var(--series-1)"} <= set(
        re.findall(r"var\(--[\w-]+\)", text)
    )


def test_words_stay_words_and_are_escaped():
    label = 'a <b> costs $5 or $6, id="x" url(#y) #000000'
    text = svg(drawing(label), "<script>", "a & b")
    assert 'a &lt;b&gt; costs $5 or $6, id="x" url(#y) #000000</text>' in text
    assert "&lt;script&gt;</title>" in text
    assert "a &amp; b</desc>" in text


def test_a_glyph_that_no_font_has_and_half_a_surrogate_are_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = svg(drawing("\u4e2d \U0001f600 \ud800"), "\ud800", "description")
    assert "\u4e2d \U0001f600 ?" in text


def test_ids_of_two_figures_never_meet_and_every_reference_has_its_target():
    texts = [svg(drawing(), "one", ""), svg(drawing(), "two", ""), svg(drawing("other"), "one", "")]
    ids = [set(re.findall(r'\bid="([^"]+)"', text)) for text in texts]
    assert not any(one & other for one, other in itertools.combinations(ids, 2))
    for text, mine in zip(texts, ids, strict=True):
        used = set(re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text))
        assert used
        assert {a or b for a, b in used} <= mine
        assert set(re.search(r'aria-labelledby="([^"]+)"', text)[1].split()) <= mine


def test_the_same_figure_is_the_same_text():
    assert svg(drawing(), "title", "d") == svg(drawing(), "title", "d")


def test_threads_draw_what_one_thread_draws_and_settings_stay():
    before = dict(matplotlib.rcParams)
    alone = [svg(drawing(str(k)), "t", "d") for k in range(6)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda k: svg(drawing(str(k)), "t", "d"), range(6)))
    assert together == alone
    assert dict(matplotlib.rcParams) == before


def test_drawing_leaves_pyplot_alone():
    code = (
        "import sys; from guardrail.report.figures import *; d = figure(); plot_area(d);"
        "svg(d, 't', 'd'); sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_missing_matplotlib_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"guardrail-vlm\[report\]"):
        figure()


def test_a_picture_is_shrunk_and_loses_its_metadata(tmp_path):
    notes = PngInfo()
    notes.add_text("Comment", "taken at home")
    Image.new("RGB", (400, 200), "red").save(tmp_path / "p.png", pnginfo=notes, dpi=(7, 7))
    with Image.open(tmp_path / "p.png") as opened:
        url = png_data(opened, 50)
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as small:
        assert small.size == (50, 25)
        assert not small.info
