"""One request's projection at every prompt position, as data."""

from __future__ import annotations

from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from PIL.Image import Image

    from guardrail.types import Verdict

Kind = Literal["template", "text", "image", "video"]
_PIXELS = {"original", "seen", "image"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """One token of the prompt.

    `text` is what the token adds to the decoded prompt: "" for a token inside a character that a
    later one completes. `kind` is `text` for what somebody wrote in a turn of `role`, `template`
    for what the chat template put around it (tools and turn marks), `image` and `video` for the
    slots of pictures and videos.
    `score` is None where the model hides the position from attention, so that it has no part in
    the answer.
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
    """A frame of a video, and the score at its last position: after it, before the next.

    Where several frames share their positions, it is the last of them.
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

    Every score is on the verdict's scale: the readout layers' mean of (<h - b, w> - zero) / gap,
    0 at the text-safe and 1 at the text-unsafe centroid. **Only the last position's score is what
    the guard decides on.** The direction w, both centroids and the offset b of a picture were
    measured at the last position of prompts; earlier positions are read on the same scale for
    illustration. They show where along the prompt the direction appears, not how much a word
    contributed to the verdict.

    A long video is judged window by window; the verdict rests on the highest of `windows`, and that
    one is what the positions are of.

    `notes` say what about this model is not known.
    """

    model: str
    verdict: Verdict
    positions: tuple[Position, ...]
    pictures: tuple[Picture, ...]
    videos: tuple[Video, ...] = ()
    windows: tuple[WindowScore, ...] = ()
    notes: tuple[str, ...] = ()

    def highest(self, count: int = 10) -> list[Position]:
        """The positions with the highest scores, template tokens left out, highest first."""
        shown = [p for p in self.positions if p.kind != "template" and p.score is not None]
        return sorted(shown, key=lambda p: -(p.score or 0.0))[:count]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON; pictures without their pixels."""
        plain: dict[str, Any] = _plain(self)
        return plain | {"verdict": self.verdict.to_dict()}


def _plain(value: Any) -> Any:
    """Dataclasses as dicts and tuples as lists."""
    if isinstance(value, tuple):
        return [_plain(one) for one in value]
    if not is_dataclass(value):
        return value
    names = [found.name for found in fields(value) if found.name not in _PIXELS]
    return {name: _plain(getattr(value, name)) for name in names}
