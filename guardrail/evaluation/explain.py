"""Where along a prompt the refusal direction appears, and where in its pictures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from guardrail.decide.detector import Detector
from guardrail.decide.linear import refusal_scores
from guardrail.errors import GuardClosedError, UnsupportedContentError
from guardrail.evaluation.explanation import Explanation, Frame, Kind, Picture, Position, Video
from guardrail.evaluation.frames import (
    UNTIED,
    FrameSlots,
    clips_of,
    shown_as_pictures,
    slots_of_pictures,
    slots_of_videos,
)
from guardrail.evaluation.patches import Layout, Span, picture_spans
from guardrail.evaluation.pieces import token_texts, written_spans
from guardrail.evaluation.scanned import scanned
from guardrail.evaluation.seen import seen_picture
from guardrail.inputs.messages import Tools, to_request
from guardrail.model.decoder import context_length
from guardrail.model.encode import Encoder
from guardrail.model.positions import check_positions
from guardrail.online.answering import verdict_of
from guardrail.online.engine import require_readable, require_room
from guardrail.worker.worker import run_in_turn

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.guard import Guard
    from guardrail.model.encode import Encoded
    from guardrail.model.load import LoadedModel
    from guardrail.policy import Policy
    from guardrail.types import Clip, Request

_AT_ONCE = 1024  # positions that are in float64 at the same time
_ROLES_UNKNOWN = (
    "which words are the user's and which are the chat template's is not known: the template does "
    "not write the same around every text"
)
_UNREADABLE = "attended positions without a finite score: {}"


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
            lambda: _explained(guard.loaded, detector, guard.policy, shown, layout),
            guard.policy.limits,
        )

    if not request.in_windows:
        return explained(request)
    scan = scanned(guard, detector, request)
    note = f"the prompt is that of {scan.verdict.window}, the highest"
    found = explained(scan.highest)
    return replace(found, verdict=scan.verdict, windows=scan.windows, notes=(note, *found.notes))


def _explained(
    loaded: LoadedModel, detector: Detector, policy: Policy, request: Request, layout: Layout
) -> Explanation:
    """On the model's thread: encode, read, and put tokens and pictures beside the scores."""
    encoder = Encoder(loaded)
    encoded = encoder.encode([request])
    require_room(encoded, policy.limits, context_length(loaded.model))
    ids = encoded.inputs["input_ids"][0].tolist()
    slots = _slots(loaded, encoder, encoded, request, layout)
    scores, attended, verdict = _read(loaded, encoded, detector, policy, request)
    lost = sum(score is None and seen for score, seen in zip(scores, attended, strict=True))
    positions, told = _positions(loaded, request, encoder, ids, slots, scores)
    return Explanation(
        model=loaded.name,
        verdict=verdict,
        positions=positions,
        pictures=tuple(_picture(loaded, encoded, request, span, scores) for span in slots.pictures),
        videos=tuple(
            _video(clip, frames, scores)
            for clip, frames in zip(clips_of(request), slots.frames, strict=True)
        ),
        notes=(*told, *([_UNREADABLE.format(lost)] if lost else [])),
    )


@dataclass(frozen=True, slots=True)
class _Slots:
    """Which positions are pictures', and which are those of each video's frames."""

    pictures: list[Span]
    frames: list[list[FrameSlots]]

    def kinds(self) -> dict[int, Kind]:
        """By position."""
        found: dict[int, Kind] = {at: "image" for span in self.pictures for at in span.positions}
        return found | {at: "video" for v in self.frames for f in v for at in f.positions}


def _slots(
    loaded: LoadedModel, encoder: Encoder, encoded: Encoded, request: Request, layout: Layout
) -> _Slots:
    inputs, ids = encoded.inputs, encoded.inputs["input_ids"][0].tolist()
    if encoder.video_as != "images" or not request.videos:
        pictures = picture_spans(loaded, inputs, ids, len(request.images), layout)
        return _Slots(pictures, slots_of_videos(loaded, inputs, ids, clips_of(request)))
    shown = len(shown_as_pictures(request))
    return _Slots(*slots_of_pictures(request, picture_spans(loaded, inputs, ids, shown, layout)))


def _read(
    loaded: LoadedModel, encoded: Encoded, detector: Detector, policy: Policy, request: Request
) -> tuple[list[float | None], list[bool], Any]:
    """Scores of all positions (None: not attended to, or not finite), and the verdict."""
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

    read = check_positions(loaded, encoded, detector, one_layer, policy=policy)
    values, attended = read.values[0].mean(-1), read.attended[0]
    known = (attended & values.isfinite()).tolist()
    scores = [v if use else None for v, use in zip(values.tolist(), known, strict=True)]
    return scores, attended.tolist(), verdict_of(detector, request, read.rulings[0])


def _positions(
    loaded: LoadedModel,
    request: Request,
    encoder: Encoder,
    ids: Sequence[int],
    slots: _Slots,
    scores: Sequence[float | None],
) -> tuple[tuple[Position, ...], list[str]]:
    """Every token with its text, origin and score, and what is not known about them."""
    tokenizer: Any = loaded.tokenizer
    texts = token_texts(tokenizer, ids)
    try:
        written = written_spans(
            request, "".join(texts), encoder, lambda tokens: "".join(token_texts(tokenizer, tokens))
        )
    except UnsupportedContentError:  # the template refuses what stands for the texts
        written = None
    shown = slots.kinds()
    special = set(tokenizer.all_special_ids)
    everything = [(0, sum(map(len, texts)), None)]
    made, at = [], 0
    for index, (token, text, score) in enumerate(zip(ids, texts, scores, strict=True)):
        # a token inside a character has no text of its own: it goes with the next one
        end = at + max(len(text), 1)
        roles = [role for a, b, role in written or everything if a < end and b > at]
        kind: Kind = "text" if roles and token not in special else "template"
        who = roles[0] if kind == "text" else None
        kind, who = (shown[index], None) if index in shown else (kind, who)
        made.append(Position(index=index, text=text, kind=kind, role=who, score=score))
        at += len(text)
    return tuple(made), [] if written is not None else [_ROLES_UNKNOWN]


def _picture(
    loaded: LoadedModel,
    encoded: Encoded,
    request: Request,
    span: Span,
    scores: Sequence[float | None],
) -> Picture:
    number = span.number
    original = None if number is None else request.images[number]
    return Picture(
        positions=span.positions,
        scores=tuple(scores[position] for position in span.positions),
        grid=span.grid,
        note=span.note,
        original=original,
        seen=None if number is None else seen_picture(loaded, encoded.inputs, request, number),
    )


def _video(clip: Clip, frames: Sequence[FrameSlots], scores: Sequence[float | None]) -> Video:
    made = [
        Frame(
            time_s=clip.times[slots.number],
            position=slots.positions[-1],
            score=scores[slots.positions[-1]],
            image=clip.frames[slots.number],
        )
        for slots in frames
    ]
    positions = tuple(at for slots in frames for at in slots.positions)
    return Video(positions=positions, frames=tuple(made), note="" if made else UNTIED)
