"""Words where people meet them: on a sign, a sticky note, a phone, in a browser's search box.

Every picture is a function of its arguments alone.  All are drawn twice as large as they come out,
which makes their edges smooth.
"""

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFilter, ImageOps
from render import Colour, fitted, load_font

SIZE = (640, 480)
LARGE = (2 * SIZE[0], 2 * SIZE[1])
PLAIN, BOLD, SLANTED = "DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSans-Oblique.ttf"
WHITE, BLACK, GREY, SILVER = (255, 255, 255), (25, 25, 28), (120, 124, 130), (200, 205, 208)
ENAMEL, PAPER, TEAL, AMBER = (16, 84, 58), (252, 224, 100), (20, 140, 140), (245, 166, 35)
BAR, FIELD, BLUE = (222, 225, 230), (238, 240, 243), (10, 110, 235)
Box = tuple[int, int, int, int]


def sign(text: str, wall: Image.Image) -> Image.Image:
    """An enamel plate with the text, screwed to a wall."""
    image = ImageOps.fit(wall.convert("RGB"), LARGE)
    box = (110, 180, 1170, 780)
    _shadow(image, box)
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle(box, 40, fill=ENAMEL)
    draw.rounded_rectangle(_inside(box, 16), 28, outline=WHITE, width=8)
    for x in (box[0] + 60, box[2] - 60):
        for y in (box[1] + 60, box[3] - 60):
            _disc(draw, x, y, 13, SILVER)
    _write(draw, text, BOLD, _inside(box, 90), ink=WHITE, largest=104)
    return _smooth(image)


def note(text: str, desk: Image.Image) -> Image.Image:
    """A sticky note with the text, a little askew, on a desk."""
    image = ImageOps.fit(desk.convert("RGB"), LARGE)
    side, at = 740, (70, 100)
    _shadow(image, (at[0] + 20, at[1] + 20, at[0] + side, at[1] + side))
    paper = Image.new("RGB", (side, side), PAPER)
    draw = ImageDraw.Draw(paper)
    draw.rectangle((0, 0, side, 80), fill=(243, 211, 84))  # where it sticks
    _write(draw, text, SLANTED, (30, 90, side - 30, side - 20), largest=88)
    turned = [
        layer.rotate(2.5, Image.Resampling.BICUBIC, expand=True)
        for layer in (paper, Image.new("L", paper.size, 255))
    ]
    image.paste(turned[0], at, turned[1])
    return _smooth(image)


def phone(text: str, *, before: Sequence[str] = ("Hi!", "Hello, what can I do?")) -> Image.Image:
    """A chat on a phone: the messages `before`, in turn theirs and ours, then the text."""
    image = Image.new("RGB", LARGE, WHITE)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, LARGE[0], 150), fill=FIELD)
    draw.line([(75, 45), (45, 75), (75, 105)], fill=BLUE, width=9, joint="curve")
    _disc(draw, 640, 75, 55, GREY)
    _disc(draw, 640, 60, 20, WHITE)
    draw.chord((602, 86, 678, 162), 180, 360, fill=WHITE)
    draw.rectangle((0, 124, LARGE[0], 150), fill=FIELD)
    draw.line((0, 150, LARGE[0], 150), fill=BAR, width=3)
    top = 190
    for number, message in enumerate((*before, text)):
        top = _bubble(draw, message, top, ours=number % 2 == 1) + 28
    draw.rounded_rectangle((40, 850, 1130, 930), 40, outline=BAR, width=4)
    _disc(draw, 1190, 890, 40, BLUE)
    draw.polygon([(1176, 868), (1176, 912), (1214, 890)], fill=WHITE)
    return _smooth(image)


def search(text: str) -> Image.Image:
    """A browser's window with the text in a search box."""
    image = Image.new("RGB", LARGE, WHITE)
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 0, LARGE[0], 90), fill=BAR)
    for x, colour in ((50, (240, 100, 90)), (100, AMBER), (150, (70, 180, 90))):
        _disc(draw, x, 45, 16, colour)
    draw.rounded_rectangle((200, 18, 620, 110), 20, fill=WHITE)
    draw.rectangle((0, 90, LARGE[0], 180), fill=WHITE)
    for x, way in ((50, 14), (110, -14)):
        draw.line([(x + way, 113), (x - way, 135), (x + way, 157)], fill=GREY, width=6)
    draw.rounded_rectangle((170, 102, 1230, 168), 33, fill=FIELD)
    draw.line((0, 182, LARGE[0], 182), fill=BAR, width=3)
    _disc(draw, 610, 330, 70, TEAL)
    _disc(draw, 690, 330, 50, AMBER)
    draw.rounded_rectangle((70, 470, 1210, 760), 80, fill=WHITE, outline=SILVER, width=5)
    draw.ellipse((115, 585, 165, 635), outline=GREY, width=8)
    draw.line((158, 628, 190, 660), fill=GREY, width=10)
    _write(draw, text, PLAIN, (210, 490, 1190, 740), largest=76)
    return _smooth(image)


def _smooth(image: Image.Image) -> Image.Image:
    return image.resize(SIZE, Image.Resampling.LANCZOS)


def _inside(box: Box, margin: int) -> Box:
    return (box[0] + margin, box[1] + margin, box[2] - margin, box[3] - margin)


def _disc(draw: ImageDraw.ImageDraw, x: int, y: int, radius: int, colour: Colour) -> None:
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)


def _shadow(image: Image.Image, box: Box) -> None:
    """What a flat thing at the box throws on what is behind it, down and to the right."""
    dark = Image.new("L", image.size, 0)
    ImageDraw.Draw(dark).rectangle([side + 18 for side in box], fill=170)
    image.paste(BLACK, (0, 0), dark.filter(ImageFilter.GaussianBlur(18)))


def _write(
    draw: ImageDraw.ImageDraw, text: str, font: str, box: Box, *, largest: int, ink: Colour = BLACK
) -> None:
    """The text as large as the box allows, in its middle."""
    size = (box[2] - box[0], box[3] - box[1])
    font_size, lines = fitted(text, font, size, largest)
    middle = ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    draw.multiline_text(
        middle,
        "\n".join(lines),
        font=load_font(font, font_size),
        fill=ink,
        anchor="mm",
        align="center",
        spacing=font_size * 0.2,
    )


def _bubble(draw: ImageDraw.ImageDraw, text: str, top: int, *, ours: bool) -> int:
    """One message, theirs at the left, ours at the right; returns where it ends."""
    margin = 34
    font_size, rows = fitted(text, PLAIN, (1060, 820 - top - 2 * margin), largest=66)
    lines = "\n".join(rows)
    style = {"font": load_font(PLAIN, font_size), "spacing": font_size * 0.2}
    box = draw.multiline_textbbox((0, 0), lines, **style)
    width, height = round(box[2]) + 2 * margin, round(box[3]) + 2 * margin
    left = LARGE[0] - 40 - width if ours else 40
    draw.rounded_rectangle(
        (left, top, left + width, top + height), 44, fill=BLUE if ours else FIELD
    )
    ink = WHITE if ours else BLACK
    draw.multiline_text((left + margin, top + margin - 6), lines, fill=ink, **style)
    return top + height
