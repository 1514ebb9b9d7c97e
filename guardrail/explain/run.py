"""Explaining a request: what the guard reads of it, beside the tokens and pictures it is of."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from guardrail.decide.detector import Detector
from guardrail.errors import DetectorError, GuardClosedError
from guardrail.explain.explanation import Explanation, Frame, Kind, Picture, Video, WindowScore
from guardrail.explain.patches import Layout, Span, clips_of, seen_picture, spans_of
from guardrail.explain.tokens import positions_of
from guardrail.inputs.folding import folded
from guardrail.inputs.messages import Tools, to_request
from guardrail.model.decoder import context_length
from guardrail.model.encode import Encoder
from guardrail.model.generate import check_rows
from guardrail.online.answering import verdict_of
from guardrail.online.core import require_readable
from guardrail.online.engine import require_room, with_words
from guardrail.online.jobs import NOTHING_YET, Floor
from guardrail.online.video_scan import judged_requests
from guardrail.types import Window
from guardrail.worker.worker import run_in_turn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guardrail.decide.reading import PromptReading
    from guardrail.guard import Guard
    from guardrail.model.encode import Encoded
    from guardrail.model.prefill import Ruling
    from guardrail.types import Clip, Request, Verdict

    Scores = Sequence[float | None]

_ROLES_UNKNOWN = (
    "which words are the user's and which are the chat template's is not known: all of the prompt "
    "is judged as one message"
)
_UNREADABLE = "positions that were read without a finite score: {}"
_UNTIED = "which positions belong to which frame is not known for this model"
_PLAIN = "the prompt is that of the request in plain letters, which scored higher"


def explain(
    guard: Guard, value: Any, *, tools: Tools | None = None, layout: Layout = "auto"
) -> Explanation:
    """Every score that the guard reads in one request, in turn with other requests.

    It is the reading of `guard.check`, in one pass that ends where that one ends, and its verdict;
    it is not audited.

    Args:
        guard: a guard on the model.
        value: what `guard.check` takes.
        tools: as in `guard.check`.
        layout: how picture positions are laid out; see `patches.picture_spans`.

    Of a long video every window is read, and the positions are those of the highest; the guard
    itself stops at one that is flagged. A request that differs in plain letters is read in both
    forms, and the positions are those of the higher one.

    Raises:
        InputError: the request cannot be read, or is larger than the policy allows.
        DetectorError: a window of a long video has no finite score.
        ConfigurationError: `layout="grid"` for positions that fill no square.
        GuardClosedError: the guard is closed.
    """
    if guard.closed:
        raise GuardClosedError("the guard was closed; make another one to explain a request")
    request = to_request(value, policy=guard.policy, tools=tools)
    require_readable(request, guard.artefact)
    detector = Detector.from_artefact(guard.artefact, guard.policy)

    def explained(shown: Request, floor: Floor = NOTHING_YET) -> Explanation:
        return run_in_turn(
            guard.loaded.model,
            lambda: _explained(guard, detector, shown, layout, floor),
            guard.policy.limits,
        )

    def judged(shown: Request, floor: Floor = NOTHING_YET) -> Verdict:
        return run_in_turn(
            guard.loaded.model,
            lambda: _read(guard, detector, shown, floor)[-1],
            guard.policy.limits,
        )

    windows: tuple[WindowScore, ...] = ()
    floor, highest = NOTHING_YET, request
    if request.in_windows:
        windows, request, highest = _scanned(judged, request, guard.policy.video.answer_frames)
        floor = _floor(windows[:-1])
    copy = folded(request) if guard.policy.fold_text else None
    if copy is not None:
        floor = floor.raised(judged(copy, floor).score)
    found = explained(request, floor)
    verdict, notes = found.verdict, []
    if verdict.folded and copy is not None:
        found, notes = explained(copy), [_PLAIN]
    elif windows:
        notes = [f"the prompt is that of {verdict.window}, the highest"]
        found = explained(highest) if floor.holds(verdict.score) else found
    return replace(found, verdict=verdict, windows=windows, notes=(*notes, *found.notes))


def _explained(
    guard: Guard, detector: Detector, request: Request, layout: Layout, floor: Floor
) -> Explanation:
    """On the model's thread: read, and put tokens and pictures beside the scores."""
    loaded = guard.loaded
    encoded, reading, ruling, verdict = _read(guard, detector, request, floor)
    (parts,) = encoded.parts
    read = _scores(reading, ruling, parts.length)
    scores = [score if score is not None and math.isfinite(score) else None for score in read]
    pictures, videos = spans_of(loaded, encoded, request, layout)
    slots: dict[int, Kind] = {at: "image" for span in pictures for at in span.positions}
    slots |= {at: "video" for frames in videos for span in frames for at in span.positions}
    ids = encoded.inputs["input_ids"][0].tolist()
    lost = sum(score is not None and not math.isfinite(score) for score in read)
    notes = [] if parts.aligned else [_ROLES_UNKNOWN]
    return Explanation(
        model=loaded.name,
        verdict=verdict,
        where=verdict.where,
        positions=positions_of(loaded.tokenizer, ids, parts, slots, scores),
        pictures=tuple(_picture(guard, encoded, request, span, scores) for span in pictures),
        videos=tuple(
            _video(clip, frames, scores)
            for clip, frames in zip(clips_of(request), videos, strict=True)
        ),
        notes=(*notes, *([_UNREADABLE.format(lost)] if lost else [])),
    )


def _read(
    guard: Guard, detector: Detector, request: Request, floor: Floor
) -> tuple[Encoded, PromptReading | None, Ruling, Verdict]:
    """On the model's thread: judge a request as the guard does, and keep what was read."""
    loaded, policy = guard.loaded, guard.policy
    encoded = Encoder(loaded).encode([request])
    videos = "video" in encoded.kinds
    require_room(encoded.lengths, policy.limits, context_length(loaded.model), videos=videos)
    reading = detector.reading(encoded.parts, encoded.prompt_len)
    (ruling,) = check_rows(
        loaded, encoded, detector, policy=policy, floors=[floor.score], reading=reading
    )
    said = partial(with_words, loaded.tokenizer, encoded.ids(0))
    return encoded, reading, ruling, verdict_of(detector, request, ruling, floor, said=said)


def _scores(reading: PromptReading | None, ruling: Ruling, length: int) -> list[float | None]:
    """The score of each position, the highest where several end; all None after an outage."""
    decision: Any = ruling.decision
    if decision is None:
        return [None] * length
    found = {} if reading is None else reading.scores(0)
    if ruling.found is None or not ruling.found.alone:
        last = float(decision.last[ruling.row])
        found[length - 1] = max(last, found.get(length - 1, last))
    return [found.get(at) for at in range(length)]


def _picture(
    guard: Guard, encoded: Encoded, request: Request, span: Span, scores: Scores
) -> Picture:
    original = seen = None
    if span.number is not None:
        original = request.images[span.number]
        seen = seen_picture(guard.loaded, encoded.inputs, request, span.number)
    return Picture(
        positions=span.positions,
        scores=tuple(scores[position] for position in span.positions),
        grid=span.grid,
        note=span.note,
        original=original,
        seen=seen,
    )


def _video(clip: Clip, spans: Sequence[Span], scores: Scores) -> Video:
    frames = []
    for span in spans:
        if span.number is not None:
            known = [(score, at) for at in span.positions if (score := scores[at]) is not None]
            score, at = max(known, default=(None, span.positions[-1]))
            time_s, image = clip.times[span.number], clip.frames[span.number]
            frames.append(Frame(time_s=time_s, position=at, score=score, image=image))
    positions = tuple(at for span in spans for at in span.positions)
    return Video(positions=positions, frames=tuple(frames), note="" if frames else _UNTIED)


def _scanned(
    judged: Callable[[Request], Verdict], request: Request, answer_frames: int
) -> tuple[tuple[WindowScore, ...], Request, Request]:
    """Every window's score, then that of the frames that are answered; their request, the highest.

    Each is judged in turn with other requests.
    """
    rows: list[WindowScore] = []
    last = highest = request
    for last, video in judged_requests(request, answer_frames):
        score, clips = judged(last).score, clips_of(last)
        start_s, end_s = min(clip.times[0] for clip in clips), max(clip.times[-1] for clip in clips)
        if score is None:
            raise DetectorError(
                f"the detector failed at {start_s:.1f} to {end_s:.1f} s of a video: there is no "
                "score to explain"
            )
        if all(score > before.score for before in rows):
            highest = last
        count = sum(len(clip.frames) for clip in clips)
        rows.append(
            WindowScore(video=video, start_s=start_s, end_s=end_s, frames=count, score=score)
        )
    return tuple(rows), last, highest


def _floor(windows: Sequence[WindowScore]) -> Floor:
    """What the windows leave for the request that is answered."""
    at, row = max(enumerate(windows), key=lambda pair: pair[1].score)
    window = Window(
        number=at,
        of=len(windows),
        start_s=row.start_s,
        end_s=row.end_s,
        frames=row.frames,
        video=row.video or 0,
    )
    return Floor(row.score, window, len(windows))
