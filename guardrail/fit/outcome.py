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
from guardrail.fit.recentring import lost_scores, measured
from guardrail.fit.select import Candidate, best_of_each
from guardrail.types import Modality

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pydantic import JsonValue
    from torch import Tensor

    from guardrail.artefact.header import Calibration
    from guardrail.decide.windows import WindowReadout
    from guardrail.fit.joint import JointReadout
    from guardrail.fit.readings import Readings
    from guardrail.fit.select import LinearReadout
    from guardrail.fit.steering import SteeringFound, Trial

DECIMALS = 6
Scores = dict[str, dict[str, float]]
TRAFFIC = "benign traffic"
"""The source of a calibration on a user's own requests."""
NOTE = "video: "
"""How the warnings about videos begin."""
_LONG = (
    "the score of a long video is the highest of its windows', so more benign ones than the target "
    "lie beyond; run `guardrail calibrate` on benign videos of your own"
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Everything a fit decided, with what it decided on."""

    fingerprint: h.Fingerprint
    readings: Readings
    chosen: Candidate
    joint: JointReadout
    window_figures: dict[str, object]
    candidates: Sequence[Candidate]
    calibration: dict[Modality, h.Calibration]
    steering: SteeringFound
    prefixes: tuple[str, ...]
    without_video: str | None = None
    history: tuple[str, ...] = ()


def artefact_of(outcome: Outcome) -> Artefact:
    """The artefact, every figure of the decisions in its header."""
    readings, readout, windows = outcome.readings, outcome.chosen.readout, outcome.joint.windows
    recentring = recentrings(readings, readout, outcome.steering.chosen)
    compared = [candidate.to_dict() for candidate in best_of_each(outcome.candidates)]
    header = h.Header(
        fingerprint=outcome.fingerprint,
        readout=h.Readout(
            estimator=readout.estimator,
            layers=readout.layers,
            turns=outcome.joint.turns,
            figures=_json({**outcome.chosen.to_dict(), "compared": compared}),
        ),
        windows=None if windows is None else windows_header(windows, outcome.window_figures),
        steering=_steering(outcome.steering),
        layers=tuple(_layer_rows(outcome)),
        recentring=recentring,
        calibration=outcome.calibration,
        refusal_prefixes=outcome.prefixes,
        data=data_record(readings),
        packages={name: version(name) for name in ("torch", "transformers", "safetensors")},
        extra={"reference": to_header(reference_scores(readings, outcome.joint))},
        warnings=tuple(_warnings(outcome, recentring)),
    )
    return Artefact(header, _tensors(outcome))


def data_record(readings: Readings) -> dict[str, JsonValue]:
    """Which prompts were read, so that the same ones can be read again on another model."""
    contrast = readings.contrast
    return {
        "digest": contrast.digest,
        "counts": dict(contrast.counts),
        "per_kind": readings.per_kind,
        **({WINDOW: SAMPLING.window} if "video" in readings.beside else {}),
        **({"videos": readings.videos} if readings.videos else {}),
    }


def windows_header(windows: WindowReadout, figures: dict[str, object]) -> h.Windows:
    """What the header says of windows; their tensors are `window_tensors`."""
    return h.Windows(
        layers=windows.layers,
        heads=windows.query.shape[1],
        width=windows.width,
        first=windows.first,
        zero=windows.zero,
        gap=windows.gap,
        alone=windows.alone,
        figures=_json(figures),
    )


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
    if outcome.joint.windows is not None:
        tensors |= window_tensors(outcome.joint.windows)
    return {name: tensor.float().contiguous() for name, tensor in tensors.items()}


def window_tensors(windows: WindowReadout, name: str = "window") -> dict[str, Tensor]:
    """The tensors of windows, whose names begin with `name`."""
    return {
        f"{name}_query": windows.query,
        f"{name}_value": windows.value,
        f"{name}_bias": windows.bias,
    }


def recentrings(
    readings: Readings, readout: LinearReadout, steered: Trial | None
) -> dict[str, h.Recentring]:
    """What is taken back beside each kind of picture, and what is left, by kind."""
    along = {} if steered is None else steered.steering.recentring
    return measured(readings.beside, readout.scores, readout.recentring, along)


def _warnings(outcome: Outcome, recentring: dict[str, h.Recentring]) -> Iterator[str]:
    if outcome.steering.chosen is None:
        tried = len(outcome.steering.trials)
        yield (
            "detect only: no edit raises refusals within its bounds "
            f"({len(outcome.steering.effects)} layers measured, {tried} settings tried)"
        )
    yield from lost_scores(recentring)
    yield from (f"history: {gap}" for gap in outcome.history)
    if not outcome.joint.turns:
        yield (
            "earlier turns are not judged again: this model runs the layers that are read at the "
            "last position alone; windows judge what stands in them"
        )
    if outcome.without_video is not None:
        yield f"{NOTE}no video can be scored: {outcome.without_video}"
    yield from video_notes(outcome.calibration, reads_videos="video" in recentring)


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


def reference_scores(readings: Readings, joint: JointReadout) -> Scores:
    """Joint scores of every prompt outside the fit split, by group and place in the set."""
    found: Scores = {}
    for name, form in readings.forms.items():
        rows = zip(form.samples, form.splits, joint.scores(form).tolist(), strict=True)
        found[name] = {
            sample.key: round(score, DECIMALS)
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


def _rows(columns: JsonValue) -> dict[str, float]:
    if not isinstance(columns, dict):
        raise TypeError("not a form's columns")
    index, score = columns["index"], columns["score"]
    if not isinstance(index, list) or not isinstance(score, list):
        raise TypeError("not lists")
    return {str(i): float(str(s)) for i, s in zip(index, score, strict=True)}


def _json(value: dict[str, object]) -> dict[str, Any]:
    """Plain JSON values, so that what is saved is what was there; None for what is no number."""
    plain: dict[str, Any] = json.loads(json.dumps(value), parse_constant=lambda _name: None)
    return plain
