"""Figures by modality, by source and by category."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal

from guardrail.evaluation.schema import Actions, Group, Label, Refusals, Separation
from guardrail.stats import (
    Estimate,
    Rate,
    Share,
    auroc,
    average_precision,
    average_precision_interval,
    tpr_at_fpr,
    tpr_at_fpr_interval,
)
from guardrail.types import Action, Modality

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from guardrail.evaluation.rows import Row

FPRS = ("0.01", "0.05", "0.10")
LABELS: tuple[Label, Label] = ("harmful", "harmless")


def aurocs_alike(
    harmful: Sequence[Row], harmless: Sequence[Row], values_of: Callable[[Row], Tensor]
) -> list[float | None]:
    """AUROC of each of k values over the pairs of inputs of one offset kind.

    For values without a re-centring of their own: what one picture shifts is not what several do.

    Args:
        harmful: inputs of one modality.
        harmless: the others; neither side is empty.
        values_of: (k,) of a row.

    Returns:
        k figures; None where a value is not finite or no kind has both labels.
    """
    count = len(values_of(harmful[0]))
    above, pairs = [0.0] * count, 0
    for kind in sorted({row.input.kind for row in harmful}):
        high = [values_of(row).tolist() for row in harmful if row.input.kind == kind]
        low = [values_of(row).tolist() for row in harmless if row.input.kind == kind]
        if low:
            pairs += len(high) * len(low)
            for i in range(count):
                above[i] += _above([values[i] for values in high], [values[i] for values in low])
    return [value / pairs if pairs and math.isfinite(value) else None for value in above]


def _above(high: Sequence[float], low: Sequence[float]) -> float:
    """In how many pairs the first is higher; NaN where a value is not finite."""
    if not all(map(math.isfinite, (*high, *low))):
        return math.nan
    return auroc(high, low) * len(high) * len(low)


def separation(harmful: Sequence[float], harmless: Sequence[float]) -> Separation:
    """How well scores tell harmful from harmless inputs; neither side is empty."""
    low, high = average_precision_interval(harmful, harmless)
    return Separation(
        n_harmful=len(harmful),
        n_harmless=len(harmless),
        auroc=Estimate.of_auroc(harmful, harmless),
        average_precision=Estimate(value=average_precision(harmful, harmless), low=low, high=high),
        tpr_at_fpr={fpr: _tpr(harmful, harmless, float(fpr)) for fpr in FPRS},
    )


def groups(rows: Sequence[Row]) -> list[Group]:
    """Every slice there is: each modality, and in it each source and each category."""
    found = []
    for modality in modalities_of(rows):
        whole = [row for row in rows if row.modality == modality]
        found.append(_group("modality", modality, whole, whole))
        found += _slices("source", whole, lambda row: row.input.item.source)
        found += _slices("category", whole, lambda row: row.input.item.category)
    return found


def modalities_of(rows: Sequence[Row]) -> list[str]:
    """Those that there are, plainer ones first."""
    found = {row.modality for row in rows}
    return [modality.value for modality in Modality if modality.value in found]


def _slices(
    by: Literal["source", "category"], whole: Sequence[Row], name_of: Callable[[Row], str]
) -> Iterator[Group]:
    slices: dict[str, list[Row]] = {}
    for row in whole:
        slices.setdefault(name_of(row), []).append(row)
    for name in sorted(slices.keys() - {""}):
        yield _group(by, name, slices[name], whole)


def _group(
    by: Literal["modality", "source", "category"],
    name: str,
    rows: Sequence[Row],
    whole: Sequence[Row],
) -> Group:
    harmful, harmless = sides_of(rows)
    all_harmful, all_harmless = sides_of(whole)
    against: Literal["itself", "all harmless of its modality", "all harmful of its modality"] = (
        "itself"
    )
    compared = harmful, harmless
    if not harmless:
        against, compared = "all harmless of its modality", (harmful, all_harmless)
    elif not harmful:
        against, compared = "all harmful of its modality", (all_harmful, harmless)
    scores = [[row.score for row in side] for side in compared]
    sides = dict(zip(LABELS, (harmful, harmless), strict=True))
    return Group(
        by=by,
        name=name,
        modality=rows[0].modality,
        n_harmful=len(harmful),
        n_harmless=len(harmless),
        against=against,
        separation=separation(*scores) if all(scores) else None,
        actions={label: _actions(side) for label, side in sides.items() if side},
        refusals={
            label: _refusals(side)
            for label, side in sides.items()
            if side and side[0].plain_refused is not None
        },
    )


def sides_of(rows: Sequence[Row]) -> tuple[list[Row], list[Row]]:
    """Harmful and harmless inputs, in order."""
    return [row for row in rows if row.harmful], [row for row in rows if not row.harmful]


def _actions(rows: Sequence[Row]) -> Actions:
    shares = {
        action: Share.of(Rate.of([row.action is action for row in rows])) for action in Action
    }
    return Actions(
        passed=shares[Action.PASS], steered=shares[Action.STEER], flagged=shares[Action.FLAG]
    )


def _refusals(rows: Sequence[Row]) -> Refusals:
    return Refusals(
        plain=Share.of(Rate.of([bool(row.plain_refused) for row in rows])),
        guarded=Share.of(Rate.of([bool(row.guarded_refused) for row in rows])),
    )


def _tpr(harmful: Sequence[float], harmless: Sequence[float], fpr: float) -> Share:
    rate = tpr_at_fpr(harmful, harmless, fpr)
    low, high = tpr_at_fpr_interval(harmful, harmless, fpr)
    return Share(rate=rate.value, hits=rate.hits, n=rate.n, low=low, high=high)
