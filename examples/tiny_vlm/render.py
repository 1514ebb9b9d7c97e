"""Pictures for the tiny VLM: typographic images of a text, text on photographs, meaningless ones.

Every picture is a function of its arguments alone.  Fonts are those that come with matplotlib
(DejaVu) and Pillow's own default font, so a fresh machine draws what ours drew.
"""

import random
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps, ImageStat

Style = Literal["plain", "figstep", "varied"]
Kind = Literal["colour", "gradient", "noise", "blur", "shapes", "scene"]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont
Colour = tuple[int, int, int]
Lines = list[str]

STYLES: tuple[Style, ...] = ("plain", "figstep", "varied")
KINDS: tuple[Kind, ...] = ("colour", "gradient", "noise", "blur", "shapes", "scene")
FONTS = (
    "DejaVuSans.ttf",
    "DejaVuSans-Bold.ttf",
    "DejaVuSans-Oblique.ttf",
    "DejaVuSansMono.ttf",
    "DejaVuSansMono-Bold.ttf",
    "DejaVuSerif.ttf",
    "DejaVuSerif-Bold.ttf",
    "",  # Pillow's default
)
SHAPES = ((512, 512), (640, 640), (640, 400), (800, 400), (900, 300), (400, 640), (360, 720))
STEP = 1.3  # height of a line in font sizes


def render(
    text: str, *, seed: int = 0, style: Style = "plain", size: tuple[int, int] | None = None
) -> Image.Image:
    """The text as a picture; `size` is (width, height), chosen by the style when left out."""
    if style not in STYLES:
        raise ValueError(f"style must be one of {STYLES}; got {style!r}")
    rng = random.Random(f"{style}-{seed}")
    if style == "figstep":
        return _figstep(text, size or (760, 760))
    if style == "varied":
        return _varied(text, rng, size or rng.choice(SHAPES))
    size = size or (512, 512)
    name = rng.choice(FONTS)
    font_size, lines = fitted(text, name, size, largest=size[1] // 10)
    return _typeset(lines, name, font_size, size, at=(size[0] // 40, size[1] // 40))


def plain_picture(seed: int, kind: Kind, size: tuple[int, int] = (512, 512)) -> Image.Image:
    """A picture that shows no text; see `KINDS`."""
    rng = random.Random(f"{kind}-{seed}")
    if kind == "colour":
        return Image.new("RGB", size, _colour(rng))
    if kind == "gradient":
        return _gradient(rng, size)
    if kind == "noise":
        return _noise(rng, size)
    if kind == "blur":
        return _noise(rng, size).filter(ImageFilter.GaussianBlur(rng.choice((3, 8, 20))))
    if kind == "shapes":
        return _shapes(rng, size)
    if kind == "scene":
        return _scene(rng, size)
    raise ValueError(f"kind must be one of {KINDS}; got {kind!r}")


def on_photograph(
    text: str, photograph: Image.Image, *, seed: int = 0, size: tuple[int, int] = (640, 480)
) -> Image.Image:
    """The text as people put it on pictures: outlined, on a band of paint, or bare."""
    rng = random.Random(f"photograph-{seed}")
    image = ImageOps.fit(photograph.convert("RGB"), size)
    name = rng.choice(("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSerif-Bold.ttf"))
    font_size, lines = fitted(text, name, (size[0], size[1] // 2), largest=size[1] // 11)
    font, step = load_font(name, font_size), font_size * STEP
    top = round(rng.uniform(0.03, 0.95 - len(lines) * step / size[1]) * size[1])
    spot = [(size[0] - font.getlength(line)) / 2 for line in lines]
    look = rng.choice(("outlined", "band", "bare"))
    box = (0, round(top - step / 4), size[0], round(top + (len(lines) + 0.25) * step))
    if look == "band":
        dark = Image.new(
            "RGB", (size[0], box[3] - box[1]), rng.choice(((20, 20, 20), (235, 235, 235)))
        )
        image.paste(Image.blend(image.crop(box), dark, 0.75), box[:2])
    light = sum(ImageStat.Stat(image.crop(box).convert("L")).mean) > 127
    ink = (0, 0, 0) if light else (255, 255, 255)
    edge = {"stroke_width": 2, "stroke_fill": tuple(255 - c for c in ink)}
    draw = ImageDraw.Draw(image)
    for i, line in enumerate(lines):
        at = (spot[i], top + i * step)
        draw.text(at, line, font=font, fill=ink, **(edge if look == "outlined" else {}))
    return image


def paragraph(
    text: str,
    font: str,
    font_size: int,
    size: tuple[int, int],
    *,
    ink: Colour = (0, 0, 0),
    ground: Colour = (255, 255, 255),
    lines: int | None = None,
    step: float = STEP,
) -> tuple[str, Image.Image]:
    """The text in one of `FONTS` at this size, and as much of it as is shown: at most `lines`."""
    shown = wrapped(text, load_font(font, font_size), 0.94 * size[0])[:lines]
    at = (size[0] // 50, size[1] // 100)
    image = _typeset(shown, font, font_size, size, at=at, ink=ink, ground=ground, step=step)
    return " ".join(shown), image


@cache
def font_folder() -> Path:
    """Where matplotlib keeps its fonts, found without importing it."""
    spec = find_spec("matplotlib")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the fonts of matplotlib are needed; run `pip install matplotlib`")
    return Path(spec.origin).parent / "mpl-data" / "fonts" / "ttf"


@cache
def load_font(name: str, size: int) -> Font:
    """One of `FONTS` at this size."""
    return ImageFont.truetype(font_folder() / name, size) if name else ImageFont.load_default(size)


def wrapped(text: str, font: Font, width: float) -> Lines:
    """The text broken between words into lines of at most `width` pixels where words allow it."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if not lines[-1] or font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def fitted(text: str, name: str, size: tuple[int, int], largest: int) -> tuple[int, Lines]:
    """The largest font size that fits the picture, and the lines at that size."""
    for font_size in range(max(largest, 10), 9, -2):
        font = load_font(name, font_size)
        lines = wrapped(text, font, 0.94 * size[0])
        fits = max(font.getlength(line) for line in lines) <= 0.95 * size[0]
        if fits and len(lines) * font_size * STEP <= 0.94 * size[1]:
            break
    return font_size, lines


def _typeset(
    lines: Lines,
    name: str,
    font_size: int,
    size: tuple[int, int],
    *,
    at: tuple[int, int],
    ink: Colour = (0, 0, 0),
    ground: Colour = (255, 255, 255),
    step: float = STEP,
) -> Image.Image:
    """Lines of one font and colour, the first with its upper left corner at `at`."""
    image = Image.new("RGB", size, ground)
    draw = ImageDraw.Draw(image)
    for i, line in enumerate(lines):
        spot = (at[0], at[1] + round(i * font_size * step))
        draw.text(spot, line, font=load_font(name, font_size), fill=ink)
    return image


def _figstep(text: str, size: tuple[int, int]) -> Image.Image:
    """The statement in bold typewriter letters, then an empty list of three items."""
    font_size = max(10, round(size[1] * 0.095))
    font = load_font("DejaVuSansMono-Bold.ttf", font_size)
    while font_size > 10:
        lines = [*wrapped(text, font, 0.95 * size[0]), "1.", "2.", "3."]
        wide = max(font.getlength(line) for line in lines) > 0.97 * size[0]
        if not wide and (len(lines) + 0.4) * font_size * 1.05 <= size[1]:
            break
        font_size -= 2
        font = load_font("DejaVuSansMono-Bold.ttf", font_size)
    at = (round(size[0] * 0.02), round(size[1] * 0.01))
    return _typeset(lines, "DejaVuSansMono-Bold.ttf", font_size, size, at=at, step=1.05)


def _varied(text: str, rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Any font, a light or dark ground, any readable colour, size, spacing and place."""
    name = rng.choice(FONTS)
    largest, _ = fitted(text, name, size, largest=size[1] // 7)
    font_size = max(14, round(largest * rng.uniform(0.5, 1.0)))
    lines = wrapped(text, load_font(name, font_size), 0.94 * size[0])
    step = rng.uniform(1.15, 1.5)
    ground, ink = contrasting(rng)
    width = max(load_font(name, font_size).getlength(line) for line in lines)
    free = (size[0] - width, size[1] - len(lines) * font_size * step)
    at = tuple(round(max(2.0, room * rng.uniform(0.05, 0.95))) for room in free)
    return _typeset(
        lines, name, font_size, size, at=(at[0], at[1]), ink=ink, ground=ground, step=step
    )


def contrasting(rng: random.Random) -> tuple[Colour, Colour]:
    """A ground colour and an ink colour that differ enough in brightness to be read."""
    while True:
        ground, ink = _colour(rng), _colour(rng)
        if abs(_brightness(ground) - _brightness(ink)) > 100:
            return ground, ink


def _brightness(colour: Colour) -> float:
    return 0.3 * colour[0] + 0.59 * colour[1] + 0.11 * colour[2]


def _colour(rng: random.Random) -> Colour:
    return (rng.randrange(256), rng.randrange(256), rng.randrange(256))


def _gradient(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Two colours that run into each other, turned to any side."""
    ramp = Image.linear_gradient("L").rotate(rng.choice((0, 90, 180, 270))).resize(size)
    ends = [Image.new("RGB", size, _colour(rng)) for _ in range(2)]
    return Image.composite(ends[0], ends[1], ramp)


def _noise(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Coloured grains of one to eight pixels."""
    grain = rng.choice((1, 2, 8))
    small = (max(1, size[0] // grain), max(1, size[1] // grain))
    noise = Image.frombytes("RGB", small, rng.randbytes(3 * small[0] * small[1]))
    return noise.resize(size, Image.Resampling.BICUBIC)


def _shapes(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """Ellipses, rectangles, lines and polygons on one colour."""
    image = Image.new("RGB", size, _colour(rng))
    draw = ImageDraw.Draw(image)
    for _ in range(rng.randint(1, 12)):
        x, y = (sorted(rng.randrange(side) for _ in range(2)) for side in size)
        box, colour = (x[0], y[0], x[1], y[1]), _colour(rng)
        match rng.choice(("ellipse", "rectangle", "line", "polygon")):
            case "ellipse":
                draw.ellipse(box, fill=colour)
            case "rectangle":
                draw.rectangle(box, fill=colour)
            case "line":
                draw.line(box, fill=colour, width=rng.randint(1, 12))
            case _:
                corners = [(rng.randrange(size[0]), rng.randrange(size[1])) for _ in range(5)]
                draw.polygon(corners, fill=colour)
    return image


def _scene(rng: random.Random, size: tuple[int, int]) -> Image.Image:
    """A landscape with the soft edges and the grain of a photograph."""
    image = _gradient(rng, size)
    draw = ImageDraw.Draw(image)
    for layer in range(3):
        level = size[1] * (0.4 + 0.2 * layer)
        ridge = [(x, level + rng.uniform(-60, 60)) for x in range(0, size[0] + 40, 40)]
        draw.polygon([(0, size[1]), *ridge, (size[0], size[1])], fill=_colour(rng))
    for _ in range(rng.randint(2, 30)):
        x, y, r = rng.randrange(size[0]), rng.randrange(size[1]), rng.randint(3, 40)
        draw.ellipse((x - r, y - r, x + r, y + r), fill=_colour(rng))
    grain = _noise(rng, size)
    return Image.blend(image.filter(ImageFilter.GaussianBlur(2)), grain, rng.uniform(0.02, 0.15))
