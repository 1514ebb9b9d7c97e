"""Figures as inline SVG that follows the page's theme, and pictures as data URLs.

Figures are drawn with the colours of `COLOURS`: stand-ins that become CSS variables, so that one
SVG fits the light, the dark and the printed page. Matplotlib is used without pyplot, hence without
a current figure that threads would share.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
import warnings
from html import escape
from threading import Lock
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from guardrail.extras import require

if TYPE_CHECKING:
    from collections.abc import Mapping

    from markupsafe import Markup
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

COLOURS: Mapping[str, str] = MappingProxyType(
    {
        "ink": "#0a0b01",  # text and axes
        "muted": "#0a0b02",  # secondary text, chance lines
        "grid": "#0a0b03",
        "paper": "#0a0b04",  # the ground a figure stands on
        "safe": "#0a0b05",
        "unsafe": "#0a0b06",
        "accent": "#0a0b07",  # the guard's own figure
        "series-1": "#0a0b08",
        "series-2": "#0a0b09",
        "series-3": "#0a0b0a",
    }
)
Grid = Literal["both", "x", "y"]
FONT_SIZE = 12  # CSS pixels, before a narrow screen scales the figure
_SAVING = Lock()  # rcParams are the process's
_NAMES = {value: name for name, value in COLOURS.items()}
_NAMES |= {"#000000": "ink", "#ffffff": "paper"}  # what matplotlib uses when nothing is said
_COLOUR = re.compile("|".join(_NAMES))
_FONT = re.compile(r"font: (?:[a-z]+ )*([\d.]+px) [^;\"]*")  # written so up to matplotlib 3.10
_FAMILY = re.compile(r"font-family: [^;\"]*(; )?")
_REFERENCE = re.compile(r'(\bid="|url\(#|href="#)')


def figure(width: float = 440, height: float = 300) -> Figure:
    """An empty figure of `width` x `height` CSS pixels whose labels are kept inside its edges.

    Line widths and font sizes in points are CSS pixels, too.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    require("matplotlib")
    from matplotlib.figure import Figure

    # the backend writes 72 units an inch
    return Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")


def plot_area(drawn: Figure, *, x: str = "", y: str = "", grid: Grid | None = "both") -> Axes:
    """A plain plot area in the page's style, filling the figure, with its axes' names.

    Args:
        drawn: from `figure`.
        x: name of the horizontal axis, with its unit.
        y: name of the vertical axis, with its unit.
        grid: which axis has grid lines; None for no grid.
    """
    axes = drawn.add_subplot()
    axes.set_facecolor("none")
    axes.set_prop_cycle(color=[COLOURS[f"series-{i}"] for i in (1, 2, 3)])
    axes.spines[["top", "right"]].set_visible(False)
    for spine in axes.spines.values():
        spine.set_color(COLOURS["muted"])
    axes.tick_params(labelsize=FONT_SIZE - 1, color=COLOURS["muted"], labelcolor=COLOURS["ink"])
    if grid is not None:
        axes.grid(visible=True, axis=grid, color=COLOURS["grid"], linewidth=0.8)
        axes.set_axisbelow(True)
    axes.set_xlabel(x, fontsize=FONT_SIZE, color=COLOURS["ink"])
    axes.set_ylabel(y, fontsize=FONT_SIZE, color=COLOURS["ink"])
    return axes


def legend(axes: Axes, **options: object) -> None:
    """A legend in the page's style; nothing where no artist has a label."""
    if axes.get_legend_handles_labels()[0]:
        style = {"frameon": False, "fontsize": FONT_SIZE - 1, "labelcolor": COLOURS["ink"]}
        axes.legend(**{**style, **options})


def short(name: str, most: int = 24) -> str:
    """A name from data at a length that leaves a figure room for its plot."""
    return name if len(name) <= most else f"{name[: most - 1]}\N{HORIZONTAL ELLIPSIS}"


def svg(drawn: Figure, title: str, description: str) -> Markup:
    """The figure as an `<svg>` element for use inside a page.

    The same figure, title and description give the same bytes. Ids are unique to the three, so a
    page may hold any number of figures. Dollar signs are text, never mathematics.

    Args:
        drawn: from `figure`; not changed otherwise, not to be used in two threads at once.
        title: a few words, read out by screen readers.
        description: what the figure shows, in a sentence or two, for those who cannot see it.
    """
    from markupsafe import Markup

    text = re.sub(r"<[^>]+>", _themed, _without_global_rules(_raw(drawn)))
    key = hashlib.sha256("\0".join((text, title, description)).encode("utf-8", "replace"))
    name = f"f{key.hexdigest()[:10]}"
    text = re.sub(r"<[^>]+>", lambda tag: _REFERENCE.sub(rf"\g<1>{name}-", tag[0]), text)
    wide, high = f"{drawn.bbox.width:g}", f"{drawn.bbox.height:g}"
    opening = (
        f'<svg class="drawn" role="img" aria-labelledby="{name}-t {name}-d"'
        f' viewBox="0 0 {wide} {high}" width="{wide}" height="{high}">'
        f'<title id="{name}-t">{escape(title)}</title>'
        f'<desc id="{name}-d">{escape(description)}</desc>'
    )
    return Markup(opening + text[text.index(">") + 1 :].strip())


def png_data(image: Image, size: int = 176) -> str:
    """A picture as a PNG data URL, shrunk to at most `size` pixels a side, without metadata."""
    small = image.convert("RGB")
    small.thumbnail((size, size))
    small.info.clear()  # comments and profiles would travel along
    data = io.BytesIO()
    small.save(data, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def _raw(drawn: Figure) -> str:
    """Matplotlib's SVG, from `<svg` on, its text as text."""
    import matplotlib
    from matplotlib.text import Text

    for text in drawn.findobj(Text):
        if isinstance(text, Text):
            text.set_parse_math(False)
            text.set_text(text.get_text().encode("utf-8", "replace").decode())
    data = io.BytesIO()
    with _SAVING, warnings.catch_warnings():
        # a glyph that only the reader's fonts have is no problem here
        warnings.filterwarnings("ignore", message=".*missing from font.*")
        with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "guardrail"}):
            drawn.savefig(data, format="svg", transparent=True, metadata={"Date": None})
    whole = data.getvalue().decode()
    return whole[whole.index("<svg") :]


def _without_global_rules(text: str) -> str:
    """Without metadata and style elements: a page's style would take the latter for its own."""
    return re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)


def _themed(tag: re.Match[str]) -> str:
    """One tag with CSS variables for the stand-in colours, and the page's font for matplotlib's."""
    text = _COLOUR.sub(lambda found: f"var(--{_NAMES[found[0]]})", tag[0])
    return _FAMILY.sub("", _FONT.sub(r"font-size: \1", text))
