"""Scores as colours, and an explained prompt as marked runs of text; for pages, PNGs, terminals.

The scale is diverging: its middle is half way between the text-safe (0) and the text-unsafe (1)
centroid. Blue and orange stay apart for all common forms of colour blindness.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from guardrail.evaluation.explanation import Explanation, Picture, Position, Video
    from guardrail.types import Verdict

    RGB = tuple[int, int, int]

MIDDLE_SCORE = 0.5
SAFE: RGB = (10, 102, 168)
UNSAFE: RGB = (180, 71, 11)
MIDDLE: RGB = (247, 247, 247)
_LEAST, _MOST = 1.0, 2.5  # how far the scale reaches from its middle
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


def scale_for(verdict: Verdict) -> Scale:
    """A scale that holds 0, 1, the thresholds and the score, as far as they are of that order."""
    known = [verdict.tau_steer, verdict.tau_flag]
    known += [] if verdict.score is None else [verdict.score]
    farthest = max(abs(value - MIDDLE_SCORE) for value in known)
    return Scale(min(max(_LEAST, 1.1 * farthest), _MOST))


def bar_range(picture: Picture, scale: Scale) -> tuple[float, float]:
    """What a bar chart of a picture's scores spans; scores far outside the scale are cut off."""
    (low, high), room = scale.ends, 2 * scale.half
    known = [score for score in picture.scores if score is not None]
    lowest, highest = min([low, *known]), max([high, *known])
    return max(lowest, MIDDLE_SCORE - room), min(highest, MIDDLE_SCORE + room)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """A run of the prompt with one colour: a token, or all positions of a picture or video.

    `decides` marks the last position. `number` counts pictures from 1, 0 for videos. `after` are
    the line breaks that `text` ends with; they show as arrows in `text`, and take the next run to a
    new line.
    """

    text: str
    kind: Literal["template", "text", "picture"]
    after: str = ""
    score: float | None = None
    position: int = 0
    role: str | None = None
    decides: bool = False
    number: int = 0


def marks(explanation: Explanation) -> list[Mark]:
    """The prompt in order, pictures and videos as one mark each; empty tokens are left out.

    A token between the frames of a video, such as its time, stands behind the video.
    """
    owner = _owners(explanation)
    last = len(explanation.positions) - 1
    made: list[Mark] = []
    told: set[str] = set()
    for position in explanation.positions:
        name, number = owner.get(position.index, ("", 0))
        if not name:
            if position.text or position.index == last:
                made.append(_token(position, decides=position.index == last))
        elif name not in told:
            told.add(name)
            text = f"[{name}]"
            made.append(Mark(text=text, kind="picture", position=position.index, number=number))
    return made


def _owners(explanation: Explanation) -> dict[int, tuple[str, int]]:
    """The name of the picture or video at a position, and the number of a picture."""
    found: dict[int, tuple[str, int]] = {}
    for number, picture in enumerate(explanation.pictures, 1):
        name = picture_name(number, picture)
        found |= dict.fromkeys(picture.positions, (name, number))
    for number, video in enumerate(explanation.videos, 1):
        found |= dict.fromkeys(video.positions, (video_name(number, video), 0))
    return found


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


@dataclass(frozen=True, slots=True, kw_only=True)
class HighRow:
    """One of the highest positions: its token or its place in a picture, and where it is from."""

    index: int
    text: str
    source: str
    score: float


def highest_rows(explanation: Explanation, count: int = 10) -> list[HighRow]:
    """The positions outside the chat template with the highest scores, highest first."""
    places = {
        at: (f"slot {k} of {len(found.positions)}", f"picture {n}")
        for n, found in enumerate(explanation.pictures, 1)
        for k, at in enumerate(found.positions, 1)
    }
    for n, video in enumerate(explanation.videos, 1):
        size = len(video.positions)
        places |= {
            at: (f"slot {k} of {size}", f"video {n}") for k, at in enumerate(video.positions, 1)
        }
    rows = []
    for position in explanation.highest(count):
        word = shown(position.text).replace("\n", "").strip() or "(part of a character)"
        text, source = places.get(position.index, (word, position.role or "text"))
        score = position.score or 0.0
        rows.append(HighRow(index=position.index, text=text, source=source, score=score))
    return rows


def _token(position: Position, *, decides: bool) -> Mark:
    text = shown(position.text)
    words = text.rstrip("\n")
    return Mark(
        text=words,
        kind="text" if position.kind == "text" else "template",
        after=text[len(words) :],
        score=position.score,
        position=position.index,
        role=position.role,
        decides=decides,
    )


def _glyph(character: str) -> str:
    if character == "\n":
        return _LINE_BREAK
    if character == "\t":
        return "    "
    hidden = unicodedata.category(character) in _HIDDEN or character in _TURNS
    return "\N{REPLACEMENT CHARACTER}" if hidden else character
