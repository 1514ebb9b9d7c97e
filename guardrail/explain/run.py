"""Where along a prompt the refusal direction appears, and where in its pictures and videos."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from guardrail.decide.detector import NO_FLOOR, Detector
from guardrail.decide.linear import refusal_scores
from guardrail.errors import DetectorError, GuardClosedError, UnsupportedContentError
from guardrail.explain.explanation import (
    Explanation,
    Frame,
    Kind,
    Picture,
    Position,
    Video,
    WindowScore,
)
from guardrail.explain.patches import Layout, Span, clips_of, seen_picture, spans_of
from guardrail.explain.tokens import token_texts, written_spans
from guardrail.inputs.messages import Tools, to_request
from guardrail.model.decoder import context_length
from guardrail.model.encode import Encoder
from guardrail.model.generate import check_rows
from guardrail.model.positions import check_positions
from guardrail.online.answering import verdict_of
from guardrail.online.engine import require_readable, require_room
from guardrail.online.jobs import Floor
from guardrail.online.video_scan import judged_requests
from guardrail.types import Window
from guardrail.worker.worker import run_in_turn

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from guardrail.guard import Guard
    from guardrail.model.encode import Encoded
    from guardrail.model.prefill import Ruling
    from guardrail.types import Clip, Request, Verdict

    Scores = Sequence[float | None]

_AT_ONCE = 1024  # positions that are in float64 at the same time
_ROLES_UNKNOWN = (
    "which words are the user's and which are the chat template's is not known: the template does "
    "not write the same around every text"
)
_UNREADABLE = "attended positions without a finite score: {}"
_UNTIED = "which positions belong to which frame is not known for this model"


def explain(
    guard: Guard, value: Any, *, tools: Tools | None = None, layout: Layout = "auto"
) -> Explanation:
    """Score every position of one request's prompt, in one pass, in turn with other requests.

    The pass ends where `guard.check` ends, and the verdict is the one it gives; it is not audited.
    Earlier positions are an illustration: see `Explanation` for what their scores mean.

    Args:
        guard: a guard on the model.
        value: what `guard.check` takes.
        tools: as in `guard.check`.
        layout: how picture positions are laid out; see `patches.picture_spans`.

    Of a long video every window is read, and the positions are those of the highest; the guard
    itself stops at one that is flagged.

    Raises:
        InputError: the request cannot be read, or is larger than the policy allows.
        DetectorError: a window of a long video has no finite score.
        UnsupportedModelError: the model does not run one position per token of the prompt.
        ConfigurationError: `layout="grid"` for positions that fill no square.
        GuardClosedError: the guard is closed.
    """
    if guard.closed:
        raise GuardClosedError("the guard was closed; make another one to explain a request")
    request = to_request(value, policy=guard.policy, tools=tools)
    require_readable(request, guard.artefact)
    detector = Detector.from_artefact(guard.artefact, guard.policy)

    def explained(shown: Request) -> Explanation:
        return run_in_turn(
            guard.loaded.model,
            lambda: _explained(guard, detector, shown, layout),
            guard.policy.limits,
        )

    if not request.in_windows:
        return explained(request)
    verdict, windows, highest = _scanned(guard, detector, request)
    note = f"the prompt is that of {verdict.window}, the highest"
    found = explained(highest)
    return replace(found, verdict=verdict, windows=windows, notes=(note, *found.notes))


def _explained(guard: Guard, detector: Detector, request: Request, layout: Layout) -> Explanation:
    """On the model's thread: encode, read, and put tokens and pictures beside the scores."""
    loaded = guard.loaded
    encoder = Encoder(loaded)
    encoded = _encoded(guard, encoder, request)
    pictures, videos = spans_of(loaded, encoder, encoded.inputs, request, layout)
    scores, lost, verdict = _read(guard, encoded, detector, request)
    slots: dict[int, Kind] = {at: "image" for span in pictures for at in span.positions}
    slots |= {at: "video" for frames in videos for span in frames for at in span.positions}
    positions, notes = _positions(guard, request, encoder, encoded, slots, scores)
    return Explanation(
        model=loaded.name,
        verdict=verdict,
        positions=positions,
        pictures=tuple(_picture(guard, encoded, request, span, scores) for span in pictures),
        videos=tuple(
            _video(clip, frames, scores)
            for clip, frames in zip(clips_of(request), videos, strict=True)
        ),
        notes=(*notes, *([_UNREADABLE.format(lost)] if lost else [])),
    )


def _encoded(guard: Guard, encoder: Encoder, request: Request) -> Encoded:
    encoded = encoder.encode([request])
    require_room(encoded, guard.policy.limits, context_length(guard.loaded.model))
    return encoded


def _read(
    guard: Guard, encoded: Encoded, detector: Detector, request: Request
) -> tuple[list[float | None], int, Verdict]:
    """All positions' scores (None: not attended to, or not finite), those lost, the verdict."""
    readout = detector.readout
    rows = {layer: number for number, layer in enumerate(readout.layers)}
    offset = readout.offsets[request.offset_kind]

    def one_layer(layer: int, hidden: Tensor) -> Tensor:
        """(rows, length, d_model) -> this layer's part of the score, (rows, length) float64."""
        at = slice(rows[layer], rows[layer] + 1)
        parts = [
            refusal_scores(
                part[:, None],
                weight=readout.weight[at],
                zero=readout.zero[at],
                gap=readout.gap[at],
                offset=offset[at].expand(len(part), 1),
            )
            for part in torch.split(hidden.flatten(0, 1), _AT_ONCE)
        ]
        return torch.cat(parts).reshape(hidden.shape[:2])

    read = check_positions(guard.loaded, encoded, detector, one_layer, policy=guard.policy)
    values, attended = read.values[0].mean(-1), read.attended[0]
    known = attended & values.isfinite()
    scores = [v if use else None for v, use in zip(values.tolist(), known.tolist(), strict=True)]
    lost = int((attended & ~known).sum())
    return scores, lost, verdict_of(detector, request, read.rulings[0])


def _positions(
    guard: Guard,
    request: Request,
    encoder: Encoder,
    encoded: Encoded,
    slots: Mapping[int, Kind],
    scores: Scores,
) -> tuple[tuple[Position, ...], list[str]]:
    """Every token with its text, origin and score, and what is not known about them."""
    tokenizer: Any = guard.loaded.tokenizer
    ids = encoded.inputs["input_ids"][0].tolist()
    texts = token_texts(tokenizer, ids)
    try:
        written = written_spans(
            request, "".join(texts), encoder, lambda tokens: "".join(token_texts(tokenizer, tokens))
        )
    except UnsupportedContentError:  # the template refuses what stands for the texts
        written = None
    special = set(tokenizer.all_special_ids)
    everything = [(0, sum(map(len, texts)), None)]
    made, at = [], 0
    for index, (token, text, score) in enumerate(zip(ids, texts, scores, strict=True)):
        # a token inside a character has no text of its own: it goes with the next one
        end = at + max(len(text), 1)
        roles = [role for a, b, role in written or everything if a < end and b > at]
        kind: Kind = "text" if roles and token not in special else "template"
        kind = slots.get(index, kind)
        who = roles[0] if kind == "text" else None
        made.append(Position(index=index, text=text, kind=kind, role=who, score=score))
        at += len(text)
    return tuple(made), [] if written is not None else [_ROLES_UNKNOWN]


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
    frames = [
        Frame(
            time_s=clip.times[span.number],
            position=span.positions[-1],
            score=scores[span.positions[-1]],
            image=clip.frames[span.number],
        )
        for span in spans
        if span.number is not None
    ]
    positions = tuple(at for span in spans for at in span.positions)
    return Video(positions=positions, frames=tuple(frames), note="" if frames else _UNTIED)


def _scanned(
    guard: Guard, detector: Detector, request: Request
) -> tuple[Verdict, tuple[WindowScore, ...], Request]:
    """The verdict, every window's score, and the request of the highest one.

    Every window, and the frames that are answered, are judged in turn with other requests.
    """
    rows: list[WindowScore] = []
    last = highest = request
    for last, video in judged_requests(request, guard.policy.video.answer_frames):
        ruling = _ruling(guard, detector, last, NO_FLOOR)
        decision: Any = ruling.decision
        clips = clips_of(last)
        row = WindowScore(
            video=video,
            start_s=min(clip.times[0] for clip in clips),
            end_s=max(clip.times[-1] for clip in clips),
            frames=sum(len(clip.frames) for clip in clips),
            score=math.nan if decision is None else float(decision.scores[ruling.row]),
        )
        if not math.isfinite(row.score):
            raise DetectorError(
                f"the detector failed at {row.start_s:.1f} to {row.end_s:.1f} s of a video: there "
                "is no score to explain"
            )
        if all(row.score > before.score for before in rows):
            highest = last
        rows.append(row)
    floor = _floor(rows[:-1])
    verdict = verdict_of(detector, last, _ruling(guard, detector, last, floor.score), floor)
    return verdict, tuple(rows), highest


def _ruling(guard: Guard, detector: Detector, request: Request, floor: float) -> Ruling:
    def judged() -> Ruling:
        encoded = _encoded(guard, Encoder(guard.loaded), request)
        return check_rows(guard.loaded, encoded, detector, policy=guard.policy, floors=[floor])[0]

    return run_in_turn(guard.loaded.model, judged, guard.policy.limits)


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
