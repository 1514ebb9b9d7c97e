from __future__ import annotations

import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from guardrail.drift.compared import ScoredRows, mean_auroc
from guardrail.stats import auroc_interval

RNG = np.random.default_rng(4)


def form(
    n: int, *, lift: float = 1.0, kinds: tuple[str, ...] = ("near",), start: int = 0
) -> ScoredRows:
    """`n` unsafe prompts and `n` safe ones of each kind; prompts are numbered from `start`."""
    names = [kind for kind in ("unsafe", *kinds) for _ in range(n)]
    scores = RNG.normal(size=len(names)) + lift * np.array([name == "unsafe" for name in names])
    return ScoredRows(range(start, start + len(names)), names, np.round(scores, 1).tolist())


def reference(one: ScoredRows, kind: str) -> float:
    rows = [(k == "unsafe", s) for k, s in zip(one.kinds, one.scores) if k in ("unsafe", kind)]  # noqa: B905
    return float(roc_auc_score([label for label, _ in rows], [score for _, score in rows]))


def test_the_figure_is_the_mean_over_kinds_then_forms() -> None:
    first, second = form(30, kinds=("near", "ordinary")), form(9, kinds=("matched",))
    wanted = (
        (reference(first, "near") + reference(first, "ordinary")) / 2 + reference(second, "matched")
    ) / 2
    assert mean_auroc([first, second]).value == pytest.approx(wanted)


def test_the_interval_of_one_kind_is_delongs() -> None:
    """Placements of each class, written out (DeLong et al. 1988)."""
    one = form(40)
    high, low = np.array(one.scores[:40]), np.array(one.scores[40:])
    above = np.array([np.mean((h > low) + 0.5 * (h == low)) for h in high])
    below = np.array([np.mean((high > s) + 0.5 * (high == s)) for s in low])
    error = math.sqrt(above.var(ddof=1) / 40 + below.var(ddof=1) / 40)
    found = mean_auroc([one]).estimate()
    assert found.high - found.value == pytest.approx(1.959964 * error)
    assert found.value - found.low == pytest.approx(1.959964 * error)


def test_the_interval_covers_what_it_should() -> None:
    """2000 pairs of samples from normals whose AUROC is known: 0.760 at a lift of 1."""
    truth, hits = 0.7602499, 0
    for _ in range(400):
        found = mean_auroc([form(40)]).estimate()
        hits += found.low <= truth <= found.high
    assert 0.91 < hits / 400 < 0.985


def test_a_prompt_in_two_forms_counts_once() -> None:
    """Two equal forms say no more than one; two of other prompts do."""
    one = form(30)
    other = ScoredRows([p + 1000 for p in one.prompts], one.kinds, one.scores)
    alone, twice = mean_auroc([one]).estimate(), mean_auroc([one, one]).estimate()
    assert (twice.low, twice.high) == pytest.approx((alone.low, alone.high))
    apart = mean_auroc([one, other]).estimate()
    assert apart.high - apart.low < 0.75 * (alone.high - alone.low)


def test_a_difference_of_like_scorers_is_sharper_than_either() -> None:
    one = form(60)
    noise = RNG.normal(size=len(one.scores)) * 0.05
    two = ScoredRows(one.prompts, one.kinds, (np.array(one.scores) + noise).tolist())
    first, second = mean_auroc([one]), mean_auroc([two])
    difference = first.above(second)
    assert difference.value == pytest.approx(first.value - second.value)
    assert difference.high - difference.low < 0.3 * (first.estimate().high - first.estimate().low)
    same = first.above(first)
    assert (same.value, same.low, same.high) == (0, 0, 0)


@pytest.mark.parametrize("sign", [1, -1])
def test_perfect_order_still_has_an_interval(sign: int) -> None:
    n = 16
    one = ScoredRows(range(2 * n), ["unsafe"] * n + ["near"] * n, [sign] * n + [-sign] * n)
    found = mean_auroc([one]).estimate()
    assert found.value == (sign > 0)
    wanted = auroc_interval([sign] * n, [-sign] * n)
    assert (found.low, found.high) == pytest.approx(wanted)
    assert found.high - found.low > 0.05


@pytest.mark.parametrize("kinds", [["unsafe"] * 4, ["near"] * 4])
def test_one_class_alone_is_refused(kinds: list[str]) -> None:
    with pytest.raises(ValueError, match="both classes"):
        mean_auroc([ScoredRows(range(4), kinds, [0.0] * 4)])


def test_nan_has_no_rank() -> None:
    with pytest.raises(ValueError, match="NaN"):
        mean_auroc([ScoredRows([0, 1], ["unsafe", "near"], [math.nan, 0.0])])
