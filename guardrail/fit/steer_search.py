"""Which layer to edit and how: causal effect first, then strength and positions behind the gate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from guardrail.fit.causal import CausalEffect, causal_effects, refusal_token_ids
from guardrail.fit.forms import spread
from guardrail.fit.select import FIRST_DEPTH, LAST_DEPTH, is_safe, is_unsafe
from guardrail.fit.steering import SteeringData, Trial, calibrate_steering, preference, steering_at

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.artefact.header import Calibration
    from guardrail.decide.detector import Steering
    from guardrail.fit.collect import Collector
    from guardrail.fit.estimators import LinearReadout
    from guardrail.fit.reading import Readings
    from guardrail.types import Request

CAUSAL_PROMPTS, STEERED_PROMPTS = 12, 20
CANDIDATE_LAYERS, STEERING_LAYERS = 4, 2


@dataclass(frozen=True)
class SteeringFound:
    """Causal effects by layer, all trials (best first) and the chosen one, if any is usable."""

    effects: dict[int, CausalEffect]
    trials: list[Trial]

    @property
    def chosen(self) -> Trial | None:
        """The best trial, when it keeps its bounds and induces any refusal that was not there."""
        best = self.trials[0] if self.trials else None
        return best if best and best.within_bounds and best.effective else None


def search(
    collect: Collector,
    readings: Readings,
    readout: LinearReadout,
    text: Calibration,
    prefixes: Sequence[str],
) -> SteeringFound:
    """Find a steering layer, a strength and positions, all on text.

    Layers from the readout's deepest on come first: an edit there costs nothing. Only when none of
    them is usable, layers before it are tried; a steered request then runs the layers between twice
    (see `guardrail.model.rerun`). Of layers at which the direction does not raise the refusal
    log-odds of safe prompts, nothing is tried further; without any other, the artefact will only
    detect.
    """

    def tried(places: list[int]) -> SteeringFound:
        return _tried(collect, readings, readout, text, prefixes, places)

    found = tried(_eligible(readings, readout))
    if found.chosen is not None:
        return found
    earlier = tried(_eligible_before(readings, readout))
    trials = sorted([*earlier.trials, *found.trials], key=preference)
    return SteeringFound(found.effects | earlier.effects, trials)


def _tried(
    collect: Collector,
    readings: Readings,
    readout: LinearReadout,
    text: Calibration,
    prefixes: Sequence[str],
    places: list[int],
) -> SteeringFound:
    """The causal effect at each of these layers, and trials at the best of them."""
    if not places:
        return SteeringFound({}, [])
    unsafe = readings.forms["plain"].rows("fit", is_unsafe)
    starts = {i: steering_at(readings.directions, i, unsafe) for i in places}
    measured = measured_effects(collect, readings, list(starts.values()), prefixes)
    effects = dict(zip(starts, measured, strict=True))
    causal = sorted(
        (i for i in places if effects[i].log_odds_shift > 0),
        key=lambda i: -effects[i].log_odds_shift,
    )
    if not causal:
        return SteeringFound(effects, [])
    data = _gated(readings, readout, text)
    best = [starts[i] for i in causal[:STEERING_LAYERS]]
    return SteeringFound(effects, calibrate_steering(collect, data, best, prefixes))


def measured_effects(
    collect: Collector, readings: Readings, edits: Sequence[Steering], prefixes: Sequence[str]
) -> list[CausalEffect]:
    """What edits without a gate do to the fit's safe prompts, always the same ones of a set."""
    token_ids = refusal_token_ids(
        lambda words: collect.loaded.tokenizer.encode(words, add_special_tokens=False), prefixes
    )
    return causal_effects(collect, causal_prompts(readings), edits, token_ids)


def causal_prompts(readings: Readings) -> list[Request]:
    """The safe prompts on which edits are measured, at most `CAUSAL_PROMPTS`."""
    plain = readings.forms["plain"]
    ordinary = plain.samples_of("select", lambda kind: kind == "ordinary")
    ordinary = ordinary or plain.samples_of("select", is_safe)  # a user's set may have none
    return [sample.request for sample in spread(ordinary, CAUSAL_PROMPTS)]


def _eligible(readings: Readings, readout: LinearReadout) -> list[int]:
    """Usable layers from the readout's deepest to the last fifth, evenly thinned."""
    end = int(LAST_DEPTH * len(readings.layers))
    allowed = [i for i in readings.usable if readout.layers[-1] <= i < end]
    return spread(allowed, CANDIDATE_LAYERS)


def _eligible_before(readings: Readings, readout: LinearReadout) -> list[int]:
    """Usable layers before the readout's deepest, but for the first ones, evenly thinned."""
    begin, end = (int(depth * len(readings.layers)) for depth in (FIRST_DEPTH, LAST_DEPTH))
    allowed = [i for i in readings.usable if begin <= i < min(end, readout.layers[-1])]
    return spread(allowed, CANDIDATE_LAYERS)


def _gated(readings: Readings, readout: LinearReadout, text: Calibration) -> SteeringData:
    """Held-out prompts for which the gate opens, and how many benign ones there were in all.

    Unsafe prompts come with words around them: that is how they arrive with a picture, and fewer of
    them are refused anyway.
    """
    plain, carried = readings.forms["plain"], readings.forms["carried"]
    benign = plain.samples_of("calibrate", is_safe)
    scores = readout.scores(plain.rows("calibrate", is_safe)).tolist()
    gate = text.thresholds
    opened = [
        sample.request
        for sample, score in zip(benign, scores, strict=True)
        if gate.steer < score <= gate.flag
    ]
    asked = spread(carried.samples_of("select", is_unsafe), STEERED_PROMPTS)
    return SteeringData([sample.request for sample in asked], opened, len(benign))
