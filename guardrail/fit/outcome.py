"""What a fit found, as an artefact that says how it was found.

Beside directions and thresholds it holds the scores of held-out prompts, with which a later model
is compared in pairs, and warnings, among them what the thresholds of videos are worth.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from guardrail.artefact import Artefact
from guardrail.artefact import header as h
from guardrail.artefact.artefact import WINDOW
from guardrail.fit.prompts import SAMPLING
from guardrail.fit.select import Candidate, best_of_each
from guardrail.types import Modality

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic import JsonValue
    from torch import Tensor

    from guardrail.artefact.header import Calibration
    from guardrail.fit.directions import Offset
    from guardrail.fit.readings import Readings
    from guardrail.fit.select import LinearReadout
    from guardrail.fit.steering import SteeringFound

DECIMALS = 6
Scores = dict[str, dict[int, float]]
TRAFFIC = "benign traffic"
"""The source of a calibration on a user's own requests."""
NOTE = "video: "
"""How the warnings about videos begin."""
_LONG = (
    "the score of a long video is the highest of its windows', so more benign ones than the target "
    "lie beyond; run `guardrail calibrate` on benign videos of your own"
)
WIDE_SPREAD = 0.5  # of the text gap: an offset that moves so much is no constant


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Everything a fit decided, with what it decided on."""

    fingerprint: h.Fingerprint
    readings: Readings
    chosen: Candidate
    candidates: Sequence[Candidate]
    calibration: dict[Modality, h.Calibration]
    steering: SteeringFound
    prefixes: tuple[str, ...]
    without_video: str | None = None


def artefact_of(outcome: Outcome) -> Artefact:
    """The artefact, every figure of the decisions in its header."""
    readings, readout = outcome.readings, outcome.chosen.readout
    offsets = offset_spreads(readings, readout)
    compared = [candidate.to_dict() for candidate in best_of_each(outcome.candidates)]
    header = h.Header(
        fingerprint=outcome.fingerprint,
        readout=h.Readout(
            estimator=readout.estimator,
            layers=readout.layers,
            figures=_json({**outcome.chosen.to_dict(), "compared": compared}),
        ),
        steering=_steering(outcome.steering),
        layers=tuple(_layer_rows(outcome)),
        offsets=offsets,
        calibration=outcome.calibration,
        refusal_prefixes=outcome.prefixes,
        data=data_record(readings),
        packages={name: version(name) for name in ("torch", "transformers", "safetensors")},
        extra={"reference": to_header(reference_scores(readings, readout))},
        warnings=tuple(_warnings(outcome, offsets)),
    )
    return Artefact(header, _tensors(outcome))


def data_record(readings: Readings) -> dict[str, JsonValue]:
    """Which prompts were read, so that the same ones can be read again on another model."""
    contrast = readings.contrast
    return {
        "digest": contrast.digest,
        "counts": dict(contrast.counts),
        "per_kind": readings.per_kind,
        **({WINDOW: SAMPLING.window} if "video" in readings.offsets else {}),
        **({"videos": readings.videos} if readings.videos else {}),
    }


def _steering(found: SteeringFound) -> h.Steering | None:
    best = found.chosen
    if best is None:
        return None
    return h.Steering(
        layer=best.steering.layer,
        gain=best.steering.gain,
        a_max=best.steering.a_max,
        region_max=best.steering.region_max,
        steer_tokens=best.steering.tokens,
        kl=best.kl,
        induced_refusal=best.induced,
        false_refusal=best.false_refusal,
        figures=_json({"factor": best.factor, "trials": [t.to_dict() for t in found.trials]}),
    )


def _layer_rows(outcome: Outcome) -> Iterator[h.LayerRow]:
    for score in outcome.readings.layers:
        effect = outcome.steering.effects.get(score.layer)
        shift = math.nan if effect is None else effect.log_odds_shift
        yield h.LayerRow.model_validate(
            score.to_dict()
            | {"causal": shift if math.isfinite(shift) else None}
            | ({} if effect is None else {"figures": _json({"kl": effect.kl})})
        )


def _tensors(outcome: Outcome) -> dict[str, Tensor]:
    readings, readout = outcome.readings, outcome.chosen.readout
    directions = readings.directions
    tensors = {
        "direction": directions.direction,
        "mu_safe": directions.mu_safe,
        "mu_unsafe": directions.mu_unsafe,
        "readout_weight": readout.weight,
        "readout_zero": readout.zero,
        "readout_gap": readout.gap,
    }
    best = outcome.steering.chosen
    edited = None if best is None else best.steering.layer
    tensors |= offset_tensors(readings.offsets, readout, directions.direction, edited)
    return {name: tensor.float().contiguous() for name, tensor in tensors.items()}


def offset_spreads(readings: Readings, readout: LinearReadout) -> dict[str, h.Offset]:
    """How far each kind of picture shifts a readout's score, and how much that varies."""
    return {
        kind: h.Offset.model_validate(offset.spread(readout.weight, readout.layers, readout.gap))
        for kind, offset in readings.offsets.items()
    }


def offset_tensors(
    offsets: Mapping[str, Offset], readout: LinearReadout, direction: Tensor, edited: int | None
) -> dict[str, Tensor]:
    """What each kind of picture adds along a readout and along the direction that is edited.

    Args:
        offsets: by kind.
        readout: what the score is read with.
        direction: (L, d_model).
        edited: the steering layer, if there is one.
    """
    tensors = {}
    for kind, offset in offsets.items():
        tensors[f"readout_offset_{kind}"] = offset.along(readout.weight, readout.layers)
        if edited is not None:
            tensors[f"steer_offset_{kind}"] = offset.along(direction[edited][None], [edited])[0]
    return tensors


def _warnings(outcome: Outcome, offsets: dict[str, h.Offset]) -> Iterator[str]:
    if outcome.steering.chosen is None:
        tried = len(outcome.steering.trials)
        yield (
            "detect only: no edit raises refusals within its bounds "
            f"({len(outcome.steering.effects)} layers measured, {tried} settings tried)"
        )
    yield from spread_warnings(offsets)
    if outcome.without_video is not None:
        yield f"{NOTE}no video can be scored: {outcome.without_video}"
    yield from video_notes(outcome.calibration, reads_videos="video" in offsets)


def spread_warnings(offsets: Mapping[str, h.Offset]) -> Iterator[str]:
    """A warning for each kind of picture whose offset is not the same for all."""
    for kind, offset in offsets.items():
        widest = max(offset.spread_colours, offset.spread_prompts)
        if widest > WIDE_SPREAD:
            own = "videos" if kind == "video" else "pictures"
            yield (
                f"re-centring of kind {kind!r} varies by {widest:.2f} text gaps between colours or "
                f"prompts; calibrate on {own} of your own"
            )


def video_notes(
    calibration: Mapping[Modality, Calibration], *, reads_videos: bool
) -> Iterator[str]:
    """A warning where thresholds of videos have no stated rate; none where nothing reads videos."""
    if not reads_videos:
        return
    own = calibration.get(Modality.VIDEO)
    if own is None:
        whose = Modality.IMAGE if Modality.IMAGE in calibration else Modality.TEXT
        yield f"{NOTE}held to the thresholds of {whose} inputs; {_LONG}"
    elif own.source != TRAFFIC:
        yield f"{NOTE}the thresholds are of videos of one window ({own.source}); {_LONG}"


def reference_scores(readings: Readings, readout: LinearReadout) -> Scores:
    """Re-centred scores of every prompt outside the fit split, by form and place in the set."""
    found: Scores = {}
    for name, form in readings.forms.items():
        rows = zip(form.samples, form.splits, readout.scores(form.residuals).tolist(), strict=True)
        found[name] = {
            sample.index: round(score, DECIMALS)
            for sample, split, score in rows
            if split != "fit" and math.isfinite(score)
        }
    return found


def to_header(scores: Scores) -> dict[str, JsonValue]:
    """As stored: parallel lists of places and scores, which take less room than pairs."""
    return {
        form: {"index": list(rows), "score": list(rows.values())} for form, rows in scores.items()
    }


def from_header(stored: JsonValue | None) -> Scores:
    """What `to_header` stored; empty for an artefact that has none, or none that can be read."""
    if not isinstance(stored, dict):
        return {}
    try:
        return {form: _rows(columns) for form, columns in stored.items()}
    except (TypeError, KeyError, ValueError):
        return {}


def _rows(columns: Mapping[str, list[float]] | JsonValue) -> dict[int, float]:
    if not isinstance(columns, dict):
        raise TypeError("not a form's columns")
    index, score = columns["index"], columns["score"]
    if not isinstance(index, list) or not isinstance(score, list):
        raise TypeError("not lists")
    return {int(i): float(s) for i, s in zip(index, score, strict=True)}


def _json(value: dict[str, object]) -> dict[str, Any]:
    """Plain JSON values, so that what is saved is what was there; None for what is no number."""
    plain: dict[str, Any] = json.loads(json.dumps(value), parse_constant=lambda _name: None)
    return plain
