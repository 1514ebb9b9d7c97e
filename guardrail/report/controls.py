"""The guard held against its controls: what each control means and whether the guard beats it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping

Outcome = Literal["beaten", "unclear", "not beaten", "backwards", "not run"]

MEANINGS = {
    "random_directions": (
        "Random directions",
        "The same readout with directions drawn at random. Shows what any direction would give.",
    ),
    "permuted_labels": (
        "Shuffled labels",
        "The guard's own scores with the labels shuffled. Shows what chance alone gives.",
    ),
    "text_baseline": (
        "Words alone",
        "TF-IDF and logistic regression on the words, out of fold. Shows what needs no model.",
    ),
    "length_only": (
        "Length alone",
        "The number of characters as the score. Shows whether the sets differ in length.",
    ),
    "length_matched": (
        "The guard at equal length",
        "The guard over pairs of (nearly) equal length. Shows what is left when length is no help.",
    ),
}


_RESULTS = {
    "beaten": "beaten",
    "unclear": "too close to tell",
    "not beaten": "not beaten",
    "backwards": "says nothing",
    "not run": "not run",
}
_AT_EQUAL_LENGTH = _RESULTS | {"beaten": "holds up", "not beaten": "does not hold up"}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One control: its AUROC, the range that is drawn, and what the comparison says.

    `why` is the reason of an outcome that the figures beside it do not show.
    """

    name: str
    meaning: str
    outcome: Outcome
    words: str
    n: str
    result: str
    value: float | None = None
    low: float | None = None
    high: float | None = None
    why: str = ""


def control_rows(controls: Mapping[str, Any]) -> list[Row]:
    """The controls of one modality, those that were not run last.

    "Beaten" takes more than a higher figure: the guard's interval must lie above the control's
    figure, or its interval where it has one. A control that separates backwards (below 0.5) is
    turned round first; a classifier that was trained for it cannot be, and says nothing.
    """
    rows = [_row(key, controls) for key in MEANINGS]
    return sorted(rows, key=lambda row: row.outcome == "not run")


def summary(rows: list[Row]) -> str:
    """One sentence on the controls of a modality."""
    run = [row for row in rows if _counts(row)]
    if not run:
        return "No control could be run, so nothing says what these figures are worth."
    matched = MEANINGS["length_matched"][0]
    sentences = []
    for outcome, lead in (
        ("not beaten", "does not beat"),
        ("unclear", "is not clearly ahead of"),
    ):
        named = [r for r in run if r.outcome == outcome and r.name != matched]
        names = [r.name.lower() + (f" ({r.why}, n {r.n})" if r.why else "") for r in named]
        if names:
            sentences.append(f"The guard {lead}: {', '.join(names)}.")
    if any(row.name == matched and row.outcome != "beaten" for row in run):
        sentences.append("Over pairs of equal length its lead is not shown.")
    if not sentences:
        return f"The guard holds up against all {len(run)} controls that were run."
    return " ".join(sentences)


def _counts(row: Row) -> bool:
    return row.outcome not in ("not run", "backwards")


def _row(key: str, controls: Mapping[str, Any]) -> Row:
    name, meaning = MEANINGS[key]
    found = controls[key]
    sides = f"{controls['n_harmful']} + {controls['n_harmless']}"
    if found is None:
        why = controls["skipped"].get(key, "no reason was recorded")
        return Row(
            name=name, meaning=meaning, outcome="not run", result="not run", words=why, n=sides
        )
    read = {
        "random_directions": _random,
        "permuted_labels": _permuted,
        "text_baseline": _baseline,
        "length_only": _length,
        "length_matched": _matched,
    }[key]
    values = read(found, controls["guard"])
    if key == "length_matched":
        result, n = _AT_EQUAL_LENGTH[values["outcome"]], f"{found['pairs']} pairs"
    else:
        result, n = _RESULTS[values["outcome"]], sides
    return Row(name=name, meaning=meaning, n=n, result=result, **values)


def _random(found: Mapping[str, Any], guard: Mapping[str, float]) -> dict[str, Any]:
    turned = [max(a, 1 - a) for a in found["aurocs"]]
    best, reach = max(turned), sum(a >= guard["value"] for a in turned)
    ends = {"value": found["mean"], "low": min(found["aurocs"]), "high": max(found["aurocs"])}
    count = len(turned)
    words = (
        f"{count} directions; either way round the best gives {best:.3f}, and {reach} "
        f"reach{'es' if reach == 1 else ''} the guard's figure"
    )
    why = (
        f"{reach} of {count} reach its {guard['value']:.3f}, p = {(1 + reach) / (1 + count):.2g}; "
        f"with {count} of them no p is below {1 / (1 + count):.2g}"
    )
    return {**ends, "outcome": _compare(guard, best, best), "words": words, "why": why}


def _permuted(found: Mapping[str, Any], guard: Mapping[str, float]) -> dict[str, Any]:
    mean, spread = found["mean"], 2 * found["sd"]
    beaten = found["p_value"] < 0.05 and guard["value"] > mean
    return {
        "value": mean,
        "low": mean - spread,
        "high": mean + spread,
        "outcome": "beaten" if beaten else "not beaten",
        "words": f"{found['draws']} shuffles, p = {found['p_value']:.2g}; the highest gave "
        f"{found['highest']:.3f}",
    }


def _baseline(found: Mapping[str, Any], guard: Mapping[str, float]) -> dict[str, Any]:
    auroc, folds = found["auroc"], f"{found['folds']} folds"
    if auroc["high"] < 0.5:
        words = f"{folds}; below chance, as where both labels share their wording: no baseline"
        return {**auroc, "outcome": "backwards", "words": words}
    return {**auroc, "outcome": _compare(guard, auroc["value"], auroc["high"]), "words": folds}


def _length(found: Mapping[str, Any], guard: Mapping[str, float]) -> dict[str, Any]:
    auroc, best = found["auroc"], found["either_way"]
    high = auroc["high"] if auroc["value"] >= 0.5 else 1 - auroc["low"]
    words = f"either way round: {best:.3f}"
    return {**auroc, "outcome": _compare(guard, best, max(high, best)), "words": words}


def _matched(found: Mapping[str, Any], guard: Mapping[str, float]) -> dict[str, Any]:
    auroc, length = found["auroc"], found["length_auroc"]
    best = max(length, 1 - length)
    words = (
        f"lengths differ by at most {found['tolerance']} characters; length alone gives "
        f"{length:.3f} on these pairs, the guard {guard['value']:.3f} on all inputs"
    )
    return {**auroc, "outcome": _compare(auroc, best, best), "words": words}


def _compare(guard: Mapping[str, float], value: float, high: float) -> Outcome:
    """Whether a figure beats a control of `value`, whose interval ends at `high`."""
    if guard["low"] > high:
        return "beaten"
    return "unclear" if guard["value"] > value else "not beaten"
