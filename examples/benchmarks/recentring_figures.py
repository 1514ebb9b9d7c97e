"""What a picture that means nothing does to scores, as figures and as a table.

Every request is scored alone and beside one picture of each of K kinds, so its K + 1 scores depend
on each other: n is always a number of requests, and no interval takes rows for independent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from tables import markdown

from guardrail.stats import clopper_pearson, threshold_at_fpr

Floats = NDArray[np.float64]
DRAWS = 2000
FPR = 0.05  # share of the safe texts that the threshold of the rates lets through
ENDS = (0.025, 0.975)  # of a 95 % interval
ALL = "all"
CLASSES = ("safe", "unsafe")
READ, CONSTANT, RECENTRED = HOW = ("as read", "less a constant", "re-centred")
"""What is made of the score beside a picture: nothing, MARS's constant, and the product's own."""


@dataclass(frozen=True)
class Scores:
    """One readout's scores of n requests, in text gaps: 0 the safe texts' mean, 1 the unsafe ones'.

    `text` (n,) alone; `beside` (n, K) beside a picture of each kind, by `HOW`; `unsafe` (n,) bool;
    `benign` (m,) are safe texts alone, which set the threshold.
    """

    unsafe: NDArray[np.bool_]
    text: Floats
    beside: Mapping[str, Floats]
    benign: Floats


def figures(scores: Scores, kinds: Sequence[str]) -> dict[str, Any]:
    """Shifts and lines by kind of picture and for all of them together, and rates."""
    beside = scores.beside
    columns = {ALL: slice(None)} | {kind: slice(k, k + 1) for k, kind in enumerate(kinds)}
    threshold = threshold_at_fpr(scores.benign.tolist(), FPR)
    return {
        "shifts": {
            kind: {
                "left": {how: by_class(scores, found[:, at]) for how, found in beside.items()},
                **line_of(scores.text, beside[READ][:, at], scores.unsafe),
            }
            for kind, at in columns.items()
        },
        "threshold": threshold,
        "rates": {
            "text": rates((scores.text > threshold)[:, None], scores.unsafe),
            **{
                how: {
                    kind: rates(found[:, at] > threshold, scores.unsafe)
                    for kind, at in columns.items()
                }
                for how, found in beside.items()
            },
        },
    }


def by_class(scores: Scores, beside: Floats) -> dict[str, Any]:
    """How far (n, K) scores lie above the same requests' alone, for either class."""
    shift = beside.mean(1) - scores.text
    groups = (shift[~scores.unsafe], shift[scores.unsafe])
    return {name: mean_of(group) for name, group in zip(CLASSES, groups, strict=True)}


def mean_of(values: Floats) -> dict[str, float]:
    """The mean of one value a request, with Student's interval."""
    value, error = float(values.mean()), float(values.std(ddof=1)) / len(values) ** 0.5
    reach = float(stats.t.ppf(ENDS[1], len(values) - 1)) * error
    return {"value": value, "low": value - reach, "high": value + reach, "n": len(values)}


def line_of(text: Floats, picture: Floats, unsafe: NDArray[np.bool_]) -> dict[str, Any]:
    """Slope, intercept and r of picture scores (n, K) on text scores (n,), over all rows.

    The intervals are percentiles of a bootstrap that draws requests, each class from its own.
    """
    rng = np.random.default_rng(0)
    groups = [np.flatnonzero(unsafe == label) for label in (False, True)]
    drawn = np.concatenate([rng.choice(group, (DRAWS, len(group))) for group in groups], axis=1)
    found, again = line(text, picture), line(text[drawn], picture[drawn])
    ends = {name: np.quantile(values, ENDS) for name, values in again.items()}
    return {
        name: {"value": float(value), "low": float(ends[name][0]), "high": float(ends[name][1])}
        for name, value in found.items()
    }


def line(x: Floats, y: Floats) -> dict[str, Floats]:
    """Least squares of y (..., n, K) on x (..., n), each x belonging to its K values of y."""
    mean_x, mean_y = x.mean(-1), y.mean((-2, -1))
    off = x - mean_x[..., None]
    within, between = (off**2).sum(-1), (off * y.mean(-1)).sum(-1)
    spread = ((y - mean_y[..., None, None]) ** 2).mean(-1).sum(-1)
    slope = between / within
    return {
        "slope": slope,
        "intercept": mean_y - slope * mean_x,
        "r": between / np.sqrt(within * spread),
    }


def rates(above: NDArray[np.bool_], unsafe: NDArray[np.bool_]) -> dict[str, Any]:
    """Shares of (n, K) rows above a threshold: of unsafe requests and of safe ones."""
    return {"tpr": share_of(above[unsafe]), "fpr": share_of(above[~unsafe])}


def share_of(above: NDArray[np.bool_]) -> dict[str, float]:
    """The share of (n, K) rows, with the exact interval of n: as if a request's rows were alike."""
    n, hits = len(above), float(above.mean(1).sum())
    low, high = clopper_pearson(hits, n)
    return {"value": hits / n, "low": low, "high": high, "n": n}


def table(report: Mapping[str, Any]) -> Iterator[str]:
    """Both tables, each with what is compared with what."""
    n, readouts = report["n"], report["readouts"]
    kinds = [ALL, *report["kinds"]]
    requests = f"{n['safe']} safe and {n['unsafe']} unsafe held-out requests"
    shifts = [
        [
            name,
            kind,
            *(signed(row["left"][how][label]) for how in HOW for label in CLASSES),
            *(signed(row[figure]) for figure in ("slope", "intercept", "r")),
        ]
        for name, found in readouts.items()
        for kind in kinds
        for row in [found["shifts"][kind]]
    ]
    source = report["artefact"] or f"{report['per_kind']} prompts of each kind of the fit split"
    yield (
        f"Each of {requests}, paired: alone, and beside one picture of each kind, which are the "
        f"same for both classes; mean shifts from the score alone, in text gaps. Slope, intercept "
        f"and r are those of scores as read on scores alone. Directions: {source}."
    )
    yield ""
    head = ["readout", "picture", *(f"{how}, {label}" for how in HOW for label in CLASSES)]
    yield from markdown([*head, "slope", "intercept", "r"], shifts)
    yield ""
    yield (
        f"Rates of the same requests above the score that at most {100 * FPR:g} % of "
        f"{n['benign']} safe texts alone exceed, the safe requests among them. Each cell: TPR; FPR."
    )
    yield ""
    cells = [
        [name, both(r["text"]), *(both(r[how][ALL]) for how in HOW)]
        for name, found in readouts.items()
        for r in [found["rates"]]
    ]
    columns = ["readout", "text alone", *(f"text and picture, {how}" for how in HOW)]
    yield from markdown(columns, cells)


def signed(found: Mapping[str, float]) -> str:
    """A figure with its sign, and its interval."""
    return f"{found['value']:+.2f} ({found['low']:+.2f} to {found['high']:+.2f})"


def both(found: Mapping[str, Mapping[str, float]]) -> str:
    """TPR and FPR, with their intervals."""
    pair = (found["tpr"], found["fpr"])
    return "; ".join(f"{f['value']:.3f} ({f['low']:.3f}-{f['high']:.3f})" for f in pair)
