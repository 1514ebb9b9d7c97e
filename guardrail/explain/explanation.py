"""What the guard read in one request, position by position, as data."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

    from guardrail.types import Verdict, Where

Kind = Literal["template", "text", "image", "video"]
_PIXELS = {"original", "seen", "image"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """One token of the prompt.

    `text` is what the token adds to the decoded prompt: "" for a token inside a character that a
    later one completes. `kind` is `text` for what somebody wrote, `image` and `video` for the slots
    of pictures and videos, `template` for what the chat template and the processor put around them,
    calls of tools among it.
    `role` is that of the message it lies in, None between messages and where that is not known.
    `score` is that of what the guard reads and that ends here; None where nothing does.
    """

    index: int
    text: str
    kind: Kind
    role: str | None
    score: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """The positions of one picture.

    `grid` is (rows, columns) where position `rows[i][j]` is known to stand for that part of
    `seen`, in reading order; None where it is not, and then `note` says why and the positions are
    a sequence. `seen` is the picture as the model got it (cropped, padded or squeezed by its
    processor), `original` as it was given; both None if a run of slots cannot be tied to a picture.
    """

    positions: tuple[int, ...]
    scores: tuple[float | None, ...]
    grid: tuple[int, int] | None
    note: str
    original: Image | None
    seen: Image | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """A frame of a video, and the highest score in its slots, which is at `position`.

    Where several frames share their slots, it is the last of them. Without a score `position` is
    the last slot.
    """

    time_s: float
    position: int
    score: float | None
    image: Image


@dataclass(frozen=True, slots=True, kw_only=True)
class Video:
    """The frames of one video as the model got them; `note` says why there are none."""

    positions: tuple[int, ...]
    frames: tuple[Frame, ...]
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowScore:
    """What one window of a long video scored; `video` is None for the frames that are answered."""

    video: int | None
    start_s: float
    end_s: float
    frames: int
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What the guard read in one request, position by position.

    Every score is on the verdict's scale, 0 at the text-safe and 1 at the text-unsafe prompts, and
    each of them counts: the verdict's score is the highest. At a token of a judged message it is
    that of the window that ends there (the tokens up to this one that the window readout holds); at
    the last position, and where an earlier answer began, that of the refusal direction there.
    Elsewhere there is none: in the template, in messages whose role is not judged, in the first
    tokens of a message and in slots that the model hides from attention.

    `where` says which reading is the highest one of these positions; None when the detector failed.
    A long video is judged window by window; then the positions are of the highest of `windows`, and
    of a request in plain letters where that one scored higher. `notes` say so, and what about this
    model is not known.
    """

    model: str
    verdict: Verdict
    where: Where | None
    positions: tuple[Position, ...]
    pictures: tuple[Picture, ...]
    videos: tuple[Video, ...] = ()
    windows: tuple[WindowScore, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def decided(self) -> range:
        """The positions that decided: those of a window, or the one where the direction was read.

        Empty when the detector failed.
        """
        if self.where is None:
            return range(0)
        if self.where.start is not None and self.where.stop is not None:
            return range(self.where.start, self.where.stop)
        last = self.where.reading == "last"
        at = len(self.positions) - 1 if last else self.highest(1)[0].index
        return range(at, at + 1)

    def highest(self, count: int = 10) -> list[Position]:
        """The positions with the highest scores, highest first."""
        scored = [(p.score, p) for p in self.positions if p.score is not None]
        return [p for _, p in sorted(scored, key=lambda pair: -pair[0])[:count]]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; pictures without their pixels."""
        plain: dict[str, Any] = _plain(self)
        where = None if self.where is None else self.where.to_dict()
        return plain | {"verdict": self.verdict.to_dict(), "where": where}


def _plain(value: Any) -> Any:
    """Dataclasses as dicts and tuples as lists."""
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if not is_dataclass(value):
        return value
    names = [found.name for found in fields(value) if found.name not in _PIXELS]
    return {name: _plain(getattr(value, name)) for name in names}
