"""Explanations from made-up scores."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from PIL import Image

from guardrail.explain.explanation import (
    Explanation,
    Frame,
    Picture,
    Position,
    Video,
    WindowScore,
)
from guardrail.types import Action, Modality, Verdict, Where, Window

SCRIPT = "<script>alert(1)</script>"


def verdict(score: float | None = 0.9, steer: float = 0.6, flag: float = 1.1) -> Verdict:
    return Verdict(
        action=Action.STEER,
        would_be=Action.STEER,
        score=score,
        tau_steer=steer,
        tau_flag=flag,
        layers=(14, 16),
        modality=Modality.IMAGE,
        artefact_id="guard-0123",
        reason="score" if score is not None else "detector_failed",
    )


def picture(
    scores: tuple[float | None, ...], grid: tuple[int, int] | None, start: int, note: str = ""
) -> Picture:
    image = Image.new("RGB", (60, 40), "green")
    return Picture(
        positions=tuple(range(start, start + len(scores))),
        scores=scores,
        grid=grid,
        note=note,
        original=image,
        seen=image,
    )


def explanation(grid: tuple[int, int] | None = (2, 3), **changes: Any) -> Explanation:
    """A picture of six slots, three of which decided, before words that are no HTML to a page."""
    slots = (0.5, 0.5, 0.5, 0.5, 2.0, None)
    words = ["<|im_start|>", "user\n", *["<image>"] * 6, f"what {SCRIPT}", " is\n\n", "", "é", "\n"]
    kinds = ["template", "template", *["image"] * 6, "text", "text", "text", "text", "template"]
    scores = [-90.0, 0.2, *slots, 0.7, 1.4, -0.3, 0.1, 0.9]
    positions = tuple(
        Position(
            index=i, text=text, kind=kind, role=None if kind == "template" else "user", score=score
        )
        for i, (text, kind, score) in enumerate(zip(words, kinds, scores, strict=True))
    )
    note = "" if grid else "not known <b>where</b>"
    made = Explanation(
        model="model & co",
        verdict=verdict(2.0),
        where=window(4, 7, Modality.IMAGE, slots=(2, 4, 6)),
        positions=positions,
        pictures=(picture(slots, grid, 2, note),),
    )
    return replace(made, **changes)


def window(start: int, stop: int, kind: Modality = Modality.TEXT, **more: Any) -> Where:
    return Where(
        reading="window", message=0, role="user", part=0, kind=kind, start=start, stop=stop, **more
    )


def filmed() -> Explanation:
    """Words around a video of four frames with two positions each, one of them hidden."""
    judged = replace(
        verdict(0.9),
        action=Action.PASS,
        would_be=Action.PASS,
        modality=Modality.VIDEO,
        window=Window(number=0, of=1, start_s=0.0, end_s=1.5, frames=4),
    )
    after = (0.1, 0.9, None, 0.4)
    scores = [score for score in after for _ in range(2)]
    kinds: list[Any] = ["text", *["video"] * 8, "template"]
    positions = [
        Position(index=i, text=f"w{i}", kind=kind, role=None, score=score)
        for i, (kind, score) in enumerate(zip(kinds, [0.2, *scores, 0.4], strict=True))
    ]
    frames = [
        Frame(time_s=i / 2, position=2 + 2 * i, score=s, image=Image.new("RGB", (16, 9)))
        for i, s in enumerate(after)
    ]
    video = Video(positions=tuple(range(1, 9)), frames=tuple(frames))
    return Explanation(
        model="m",
        verdict=judged,
        where=window(2, 5, Modality.VIDEO, slots=(1, 3, 8)),
        positions=tuple(positions),
        pictures=(),
        videos=(video,),
    )


def scanned(rows: Any = ((0, 0.0, 3.5, -0.5), (0, 4.0, 7.5, 0.8), (None, 0.0, 7.5, 0.4))) -> Any:
    """The same of a long video, with these windows."""
    windows = tuple(
        WindowScore(video=v, start_s=a, end_s=b, frames=8, score=s) for v, a, b, s in rows
    )
    return replace(filmed(), windows=windows)
