"""Scores as colours, and an explained prompt as marked runs of text; for pages and terminals.

The scale is diverging: its middle is half way between the text-safe (0) and the text-unsafe (1)
centroid. Blue and orange stay apart for all common forms of colour blindness.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable

    from PIL.Image import Image

    from guardrail.explain.explanation import Explanation, Picture, Position, Video
    from guardrail.types import Verdict

    RGB = tuple[int, int, int]

MIDDLE_SCORE = 0.5
SAFE: RGB = (10, 102, 168)
UNSAFE: RGB = (180, 71, 11)
MIDDLE: RGB = (247, 247, 247)
_LEAST, _MOST = 1.0, 2.5  # how far the scale reaches from its middle
_WASH = 0.35  # how far a picture is bleached, so that the colours over it are seen
_OPACITY = 0.72  # of a cell over a picture at an end of the scale
_LINE_BREAK = "\N{DOWNWARDS ARROW WITH CORNER LEFTWARDS}\n"
_HIDDEN = {"Cc", "Cs", "Co", "Cn"}  # categories without a glyph of their own
_TURNS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")  # reorder what follows


@dataclass(frozen=True, slots=True)
class Scale:
    """Colours of scores within `half` of the middle; what lies beyond gets the end's colour."""

    half: float

    @property
    def ends(self) -> tuple[float, float]:
        """The lowest and the highest score with a colour of their own."""
        return MIDDLE_SCORE - self.half, MIDDLE_SCORE + self.half

    def share(self, score: float) -> float:
        """Where a score lies: -1 at the safe end, 0 in the middle, 1 at the unsafe end."""
        return max(-1.0, min(1.0, (score - MIDDLE_SCORE) / self.half))

    def rgb(self, score: float, strength: float = 1.0) -> RGB:
        """A score's colour on light ground; `strength` below 1 keeps text on it readable."""
        share = self.share(score)
        end = SAFE if share < 0 else UNSAFE
        part = abs(share) * strength
        red, green, blue = (round(m + part * (e - m)) for m, e in zip(MIDDLE, end, strict=True))
        return red, green, blue

    def rgba(self, score: float | None, opacity: float) -> tuple[int, int, int, int]:
        """A score's colour over anything: more or less of the end's, none of the middle's."""
        if score is None:
            return (0, 0, 0, 0)
        share = self.share(score)
        return (*(SAFE if share < 0 else UNSAFE), round(255 * opacity * abs(share)))

    def span_of(self, scores: Iterable[float | None]) -> tuple[float, float]:
        """What a chart of scores spans; those far outside the scale are cut off."""
        low, high = self.ends
        known = [score for score in scores if score is not None]
        lowest, highest = min([low, *known]), max([high, *known])
        room = 0.03 * self.half
        return max(lowest, low - self.half) - room, min(highest, high + self.half) + room


def scale_for(verdict: Verdict) -> Scale:
    """A scale that holds 0, 1, the thresholds and the score, as far as they are of that order."""
    known = [verdict.tau_steer, verdict.tau_flag]
    known += [] if verdict.score is None else [verdict.score]
    farthest = max(abs(value - MIDDLE_SCORE) for value in known)
    return Scale(min(max(_LEAST, 1.1 * farthest), _MOST))


def heat_map(picture: Picture, scale: Scale, side: int = 448) -> Image | None:
    """The picture as the model got it, in grey, under one cell per position; None without a grid.

    Cells are not smoothed: nothing is known between two positions. A cell without a score stays
    clear. The longer side has `side` pixels, and each cell at least one.
    """
    if picture.grid is None or picture.seen is None:
        return None
    from PIL import Image as Images

    rows, columns = picture.grid
    factor = side / max(picture.seen.size)
    width, height = (max(round(n * factor), 1) for n in picture.seen.size)
    size = (max(width, columns), max(height, rows))
    grey = picture.seen.convert("L").convert("RGB").resize(size, Images.Resampling.LANCZOS)
    ground = Images.blend(grey, Images.new("RGB", size, "white"), _WASH)
    cells = Images.new("RGBA", (columns, rows))
    cells.putdata([scale.rgba(score, _OPACITY) for score in picture.scores])
    over = cells.resize(size, Images.Resampling.NEAREST)
    ground.paste(over.convert("RGB"), mask=over.getchannel("A"))
    return ground


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A run of the prompt with one colour: a token, or all positions of a picture or video.

    `decides` marks what the verdict's score is of. `after` are the line breaks that `text` ends
    with; they show as arrows in `text`, and take the next run to a new line.
    """

    text: str
    kind: Literal["template", "text", "picture"]
    after: str = ""
    score: float | None = None
    position: int = 0
    role: str | None = None
    decides: bool = False


def marks(explanation: Explanation) -> list[Mark]:
    """The prompt in order, pictures and videos as one mark each; empty tokens are left out.

    A token between the frames of a video, such as its time, stands behind the video.
    """
    owners: dict[int, str] = {}
    for number, picture in enumerate(explanation.pictures, 1):
        owners |= dict.fromkeys(picture.positions, picture_name(number, picture))
    for number, video in enumerate(explanation.videos, 1):
        owners |= dict.fromkeys(video.positions, video_name(number, video))
    decided = {owners.get(at, at) for at in explanation.decided}
    made: dict[str | int, Mark] = {}
    for found in explanation.positions:
        at, name = found.index, owners.get(found.index)
        if name is not None and name not in made:
            decides = name in decided
            made[name] = Mark(text=f"[{name}]", kind="picture", position=at, decides=decides)
        elif name is None and found.text:
            text = shown(found.text)
            words = text.rstrip("\n")
            made[at] = Mark(
                text=words,
                kind="text" if found.kind == "text" else "template",
                after=text[len(words) :],
                score=found.score,
                position=at,
                role=found.role,
                decides=at in decided,
            )
    return list(made.values())


def picture_name(number: int, picture: Picture) -> str:
    """What a picture is called: its number and how many positions it takes."""
    count = len(picture.positions)
    return f"picture {number}: {count} position{'' if count == 1 else 's'}"


def video_name(number: int, video: Video) -> str:
    """What a video is called: its number, how many positions it takes, and when."""
    times = [frame.time_s for frame in video.frames]
    span = f", {times[0]:.1f} to {times[-1]:.1f} s" if times else ""
    return f"video {number}: {len(video.positions)} positions{span}"


def shown(text: str) -> str:
    """Text for people: line breaks are visible, nothing else controls a terminal or a page."""
    return "".join(map(_glyph, text))


def _glyph(character: str) -> str:
    if character == "\n":
        return _LINE_BREAK
    if character == "\t":
        return "    "
    hidden = unicodedata.category(character) in _HIDDEN or character in _TURNS
    return "\N{REPLACEMENT CHARACTER}" if hidden else character


def told_where(explanation: Explanation) -> str:
    """Which reading decided, with the words of a window; "" when the detector failed."""
    words = quoted(explanation)
    return f"{explanation.where}{words and f': {words}'}" if explanation.where else ""


def quoted(explanation: Explanation) -> str:
    """The words of the window that decided; "" where none did, or it holds none."""
    words = "" if explanation.where is None else shown(explanation.where.words)
    words = words.replace("\n", "").strip()
    return words and f'"{words}"'


def highest_rows(explanation: Explanation, count: int = 10) -> list[tuple[Position, str, str]]:
    """The positions with the highest scores, highest first.

    Each with its token or its place in a picture, and what it is part of.
    """
    last = len(explanation.positions) - 1
    media = [(f"picture {n}", p.positions) for n, p in enumerate(explanation.pictures, 1)]
    media += [(f"video {n}", v.positions) for n, v in enumerate(explanation.videos, 1)]
    places = {
        at: (f"slot {slot} of {len(positions)}", name)
        for name, positions in media
        for slot, at in enumerate(positions, 1)
    }
    rows = []
    for found in explanation.highest(count):
        word = shown(found.text).replace("\n", "").strip() or "(part of a character)"
        between = "the last position" if found.index == last else "the end of an earlier turn"
        rows.append((found, *places.get(found.index, (word, found.role or between))))
    return rows
