"""The rules as a table: figures that hold in every way, changed in one."""

from __future__ import annotations

from typing import Any

import pytest

from guardrail.drift.schema import (
    Figures,
    PictureDrift,
    RateDrift,
    Separation,
    SteeringDrift,
)
from guardrail.drift.verdict import judge
from guardrail.stats import Estimate, Rate, Share


def estimate(value: float, reach: float = 0.01) -> Estimate:
    return Estimate(value=value, low=value - reach, high=value + reach)


def separation(
    old: float = 0.93,
    *,
    best: float = 0.93,
    fitted: float | None = 0.93,
    recorded: float | None = 0.93,
    reach: float = 0.01,
) -> Separation:
    return Separation(
        n=200,
        recorded=recorded,
        fitted=None if fitted is None else estimate(fitted),
        old=estimate(old),
        same=None,
        best=estimate(best),
        best_estimator="shrinkage LDA",
        best_layers=(3,),
        lost=estimate(best - old, reach),
        dropped=None if fitted is None else estimate(fitted - old),
    )


def rate(
    now: int,
    then: int | None = 20,
    *,
    label: str = "safe",
    target: float | None = 0.1,
    p: float | None = 1.0,
    n: int = 200,
) -> RateDrift:
    return RateDrift(
        modality="text",
        label=label,
        action="steer",
        threshold=0.5,
        target=target,
        now=Share.of(Rate(now, n)),
        fitted=None if then is None else Share.of(Rate(then, n)),
        p_value=p if then is not None else None,
    )


def steering(now: float | None, fitted: float | None = 2.0) -> SteeringDrift:
    return SteeringDrift(
        layer=4, n=12, shift_fitted=fitted, shift_now=now, shift_fresh=1.0,
        kl_fitted=0.5, kl_now=0.5, kl_fresh=0.5,
    )  # fmt: skip


def picture(safe: float, unsafe: float, *, then: float = 0.05, kind: str = "image") -> PictureDrift:
    """What is left beside pictures now; at the fit the same on either side of 0."""
    return PictureDrift(
        kind=kind, safe_fitted=-then, unsafe_fitted=then, safe_now=safe, unsafe_now=unsafe
    )


def figures(**changes: Any) -> Figures:
    held: dict[str, Any] = {
        "separation": separation(),
        "forms": (),
        "layers": (),
        "rates": (rate(20),),
        "shifts": (),
        "centroids_now": (0.0, 1.0),
        "pictures": (picture(-0.05, 0.05),),
        "steering": steering(2.0),
    }
    return Figures(**held | changes)


KEPT = {
    "nothing moved": {},
    "scores moved, no rate did": {"centroids_now": (0.3, 1.3)},
    "separation rose": {"separation": separation(0.95, best=0.95)},
    "a new fit is better, but nothing was lost": {"separation": separation(0.93, best=0.98)},
    "a new fit is a little better": {"separation": separation(0.90, best=0.92)},
    "a new fit may be better by chance": {"separation": separation(0.88, best=0.92, reach=0.05)},
    "separation fell and no fit does better": {"separation": separation(0.85, best=0.86)},
    "pictures do a little else": {"pictures": (picture(0.04, 0.14),)},
    "pictures do as much as at the fit": {"pictures": (picture(-0.4, 0.4, then=0.4),)},
    "the rate is not the target's, as at the fit": {"rates": (rate(5, 5),)},
    "fewer benign prompts, by chance": {"rates": (rate(14, 20, p=0.011),)},
    "more unsafe prompts are found": {
        "rates": (rate(190, 150, label="unsafe", target=None, p=1e-6),)
    },
    "the edit does half": {"steering": steering(1.05)},
    "the edit does more": {"steering": steering(4.0)},
    "there is no edit": {"steering": None},
    "as close to what a fit needs as at the fit": {
        "separation": separation(0.792, best=0.801, fitted=0.796)
    },
    "an old artefact's rates fit the target": {"rates": (rate(22, None),)},
}
MOVED = {
    "other benign prompts": ({"rates": (rate(45, 20, p=1e-5),)}, "22.5%"),
    "fewer benign prompts": ({"rates": (rate(4, 20, p=1e-4),)}, "2.0%"),
    "more than the target": ({"rates": (rate(35, 25, p=0.02),)}, "target 10.0%"),
    "fewer unsafe prompts": (
        {"rates": (rate(90, 150, label="unsafe", target=None, p=1e-6),)}, "unsafe prompts"
    ),
    "pictures lift safe requests": (
        {"pictures": (picture(0.1, 0.05, kind="images"),)}, "'images'"
    ),
    "pictures lower unsafe requests": (
        {"pictures": (picture(-0.05, -0.1),)}, "-0.10 (unsafe) text gaps, -0.05 and +0.05"
    ),
    "an old artefact's rate misses the target": ({"rates": (rate(40, None),)}, "20.0%"),
    "an old artefact's rate is below the target": ({"rates": (rate(6, None),)}, "3.0%"),
    "no rate is known, the safe centroid moved": (
        {"rates": (rate(6, None, target=None),), "centroids_now": (0.15, 1.0)}, "0.15 (safe)"
    ),
    "no rate of texts is known, the safe centroid moved": (
        {
            "rates": (
                rate(6, None, target=None),
                rate(20).model_copy(update={"modality": "image"}),
            ),
            "centroids_now": (0.15, 1.0),
        },
        "0.15 (safe)",
    ),
    "no rate is known, the unsafe centroid moved": (
        {"rates": (), "centroids_now": (0.0, 0.8)}, "0.80 (unsafe)"
    ),
}  # fmt: skip
LOST = {
    "below what any fit needs": (
        {"separation": separation(0.79, best=0.81, recorded=0.81, fitted=None)}, "0.790"
    ),
    "below it, and fallen": (
        {"separation": separation(0.792, best=0.81, fitted=0.81)}, "0.80 is needed"
    ),
    "far below it, though it was so at the fit": (
        {"separation": separation(0.78, best=0.79, fitted=0.782)}, "0.80 is needed"
    ),
    "below a new fit": ({"separation": separation(0.88, best=0.93)}, "0.050 below"),
    "below a new fit, only the record known": (
        {"separation": separation(0.88, best=0.93, fitted=None)}, "0.930 at the fit"
    ),
    "below a new fit, nothing known of then": (
        {"separation": separation(0.88, best=0.93, fitted=None, recorded=None)}, "0.880,"
    ),
    "the edit does less than half": ({"steering": steering(0.9)}, "+0.90"),
    "the edit does the opposite": ({"steering": steering(-0.1, None)}, "-0.10"),
    "the edit breaks the model": ({"steering": steering(None)}, "not finite"),
}  # fmt: skip


@pytest.mark.parametrize("change", KEPT.values(), ids=KEPT)
def test_what_keeps(change: dict[str, Any]) -> None:
    found = judge(figures(**change))
    assert found.verdict == "keep"
    assert "n = 200" in found.reasons[0]


@pytest.mark.parametrize(("change", "says"), MOVED.values(), ids=MOVED)
def test_what_recalibrates(change: dict[str, Any], says: str) -> None:
    found = judge(figures(**change))
    assert found.verdict == "recalibrate"
    assert len(found.reasons) == 1
    assert says in found.reasons[0]


@pytest.mark.parametrize(("change", "says"), LOST.values(), ids=LOST)
def test_what_refits(change: dict[str, Any], says: str) -> None:
    found = judge(figures(**change))
    assert found.verdict == "refit"
    assert says in found.reasons[0]


def test_a_loss_outweighs_a_move_and_both_are_told() -> None:
    found = judge(figures(steering=steering(0.1), rates=(rate(90, 20, p=1e-9),)))
    assert found.verdict == "refit"
    assert ["log-odds" in found.reasons[0], "benign" in found.reasons[1]] == [True, True]


def test_reasons_carry_counts_and_intervals() -> None:
    (reason,) = judge(figures(rates=(rate(45, 20, p=1e-5),))).reasons
    low, high = Rate(45, 200).interval()
    assert f"(45/200, {low:.1%} to {high:.1%})" in reason
    assert "20/200" in reason
    assert "p = 1e-05" in reason
