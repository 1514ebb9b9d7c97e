"""What stands around the figures: the data, the settings, the artefact's curves, the warnings."""

from __future__ import annotations

import hashlib
import sys
from typing import TYPE_CHECKING, Any

from guardrail.artefact.artefact import sampling_notes
from guardrail.evaluation import controls, scores
from guardrail.evaluation.groups import aurocs_alike, modalities_of, sides_of
from guardrail.evaluation.schema import LayerPoint, StrengthPoint
from guardrail.fit.collect import VERSIONS
from guardrail.fit.dataset import packaged
from guardrail.model.fingerprint import fingerprint
from guardrail.policy.acting import effective_thresholds, enforces
from guardrail.stats import Share
from guardrail.types import Modality

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from guardrail.artefact import Artefact
    from guardrail.evaluation.inputs import Input, Troubles
    from guardrail.evaluation.rows import Row
    from guardrail.evaluation.schema import Group
    from guardrail.guard import Guard

_HIGHEST = ", although the score of a long video is the highest of its windows"
_APART = 0.01  # of the text gap: more than batching and precision explain


def layer_points(artefact: Artefact, rows: Sequence[Row]) -> Iterator[LayerPoint]:
    """AUROC of every layer's difference of means, in each modality that has both labels.

    Offsets are left out, since most layers have none: inputs are compared with those that have one
    picture, several, or a video, as they do. Of a long video each layer's highest window counts.
    """
    each = {}
    for modality in modalities_of(rows):
        both = sides_of([row for row in rows if row.modality == modality])
        if all(both):
            each[modality] = aurocs_alike(*both, lambda row: row.scores.layers)
    steering = artefact.header.steering
    for layer in range(len(artefact.tensors["direction"])):
        found = {modality: values[layer] for modality, values in each.items()}
        yield LayerPoint(
            layer=layer,
            read=layer in artefact.header.readout.layers,
            edited=steering is not None and layer == steering.layer,
            auroc={name: value for name, value in found.items() if value is not None},
        )


def strength_points(artefact: Artefact) -> list[StrengthPoint]:
    """The strengths that the fit tried on held-out text; none of an artefact without a record."""
    steering = artefact.header.steering
    trials: Any = steering.figures.get("trials") if steering is not None else None
    if steering is None or not isinstance(trials, list):
        return []
    chosen = (steering.layer, steering.steer_tokens, steering.figures.get("factor"))
    return [
        StrengthPoint(
            layer=trial["layer"],
            tokens=trial["tokens"],
            factor=trial["factor"],
            chosen=(trial["layer"], trial["tokens"], trial["factor"]) == chosen,
            induced=Share(**trial["induced_refusal"]),
            false_refusal=Share(**trial["false_refusal"]),
            kl=trial["kl"],
        )
        for trial in trials
        if trial["kl"] is not None
    ]


def data_facts(rows: Sequence[Row], troubles: Troubles, *, content: bool) -> dict[str, Any]:
    """How many inputs of what there are, a digest of all that was measured, and what was not.

    Without `content` an error is named by its class: its words may quote the input.
    """
    lines = sorted(f"{row.input.digest} {row.input.item.label}" for row in rows)
    counts: dict[str, dict[str, int]] = {}
    for row in rows:
        item = row.input.item
        of_source = counts.setdefault(item.source, {"harmful": 0, "harmless": 0})
        of_source[item.label] += 1
    return {
        "n": len(rows),
        "digest": hashlib.sha256("\n".join(lines).encode()).hexdigest(),
        "sources": counts,
        "distinct": len({row.input.digest for row in rows}),
        "skipped": dict(troubles.found if content else troubles.kinds),
    }


def settings_facts(
    guard: Guard, *, answers: bool, new_tokens: int, batch_size: int
) -> dict[str, Any]:
    """What a rerun needs to give the same figures."""
    return {
        "answers": answers,
        "new_tokens": new_tokens,
        "sampling": "greedy",
        "batch_size": batch_size,
        "dtype": str(guard.loaded.model.dtype).removeprefix("torch."),
        "device": guard.loaded.device.type,
        "packages": dict(VERSIONS),
        "random_directions": scores.RANDOM_SEEDS,
        "permutations": controls.DRAWS,
        "folds": controls.FOLDS,
        "length_tolerance": controls.TOLERANCE,
    }


def thresholds(guard: Guard) -> dict[str, dict[str, float]]:
    """The scores beyond which inputs are steered and flagged; for infinity the largest float.

    Only those that act: `steer` is left out where the policy does not allow it or the artefact only
    detects, `flag` where the policy does not allow it.
    """
    largest, policy = sys.float_info.max, guard.policy
    can_steer = guard.artefact.header.steering is not None
    acting = {action.value for action in effective_thresholds(policy, can_steer=can_steer)}

    def finite(value: float) -> float:
        return max(-largest, min(value, largest))

    return {
        modality.value: {
            name: finite(level) for name, level in found.model_dump().items() if name in acting
        }
        for modality, found in guard.thresholds.items()
    }


def warnings(
    guard: Guard,
    rows: Sequence[Row],
    found: Sequence[Group],
    troubles: Troubles,
) -> Iterator[str]:
    """What a reader must know before believing the figures."""
    differing = guard.artefact.header.fingerprint.differences(fingerprint(guard.loaded))
    if differing:
        yield f"the artefact was fitted on another model ({', '.join(sorted(differing))} differ)"
    if troubles.found:
        named = ", ".join(list(troubles.found)[:5])
        more = ", ..." if len(troubles.found) > 5 else ""
        yield f"inputs left out because of errors: {len(troubles.found)} ({named}{more})"
    yield from _repeats([row.input for row in rows])
    yield from _thin(found)
    modalities = {row.input.modality for row in rows}
    yield from _borrowed(guard, modalities)
    if Modality.VIDEO in modalities:
        yield from sampling_notes(guard.artefact, guard.policy)
    if not enforces(guard.policy):
        yield (
            "shadow mode: guarded answers are the model's own; actions are what would have been "
            "done, and there are no figures of quality"
        )
    # Of a video the guard looks no further once a window is flagged.
    apart = [
        abs(r.score - r.guarded.score)
        for r in rows
        if r.guarded is not None and not (r.modality == Modality.VIDEO and r.guarded.flagged)
    ]
    if apart and max(apart) > _APART:
        yield (
            f"scores of the evaluation and of the guard's own answers differ by up to "
            f"{max(apart):.3f}; batching changes this model's residuals"
        )


def _repeats(inputs: Sequence[Input]) -> Iterator[str]:
    labels: dict[str, set[str]] = {}
    for one in inputs:
        labels.setdefault(one.digest, set()).add(one.item.label)
    if len(labels) < len(inputs):
        yield (
            f"inputs that repeat another one: {len(inputs) - len(labels)}; intervals are narrower "
            "than they should be"
        )
    both = sum(len(each) > 1 for each in labels.values())
    if both:
        yield f"inputs that stand there with both labels: {both}"
    fitted = {prompt.text for prompt in packaged()}
    known = sum(one.item.text in fitted for one in inputs)
    if known:
        yield f"inputs among the packaged contrast prompts, which guards are fitted on: {known}"


def _borrowed(guard: Guard, modalities: set[Modality]) -> Iterator[str]:
    for modality in sorted(modalities - set(guard.policy.thresholds)):
        used, _ = guard.artefact.calibration_for(modality)
        if used != modality:
            yield (
                f"{modality}: the artefact has no calibration for these inputs; they are held to "
                f"the thresholds of {used}{_HIGHEST if modality is Modality.VIDEO else ''}"
            )


def _thin(found: Sequence[Group]) -> Iterator[str]:
    for group in found:
        if group.by != "modality":
            continue
        sides: Mapping[str, int] = {"harmful": group.n_harmful, "harmless": group.n_harmless}
        for label, n in sides.items():
            if n == 0:
                yield f"{group.name}: no {label} inputs, so no separation and no controls"
        if 0 < group.n_harmless < 100:
            yield (
                f"{group.name}: {group.n_harmless} harmless inputs cannot show a false-positive "
                "rate of 1 %; at least 100 are needed"
            )
