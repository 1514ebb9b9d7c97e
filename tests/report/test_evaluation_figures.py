"""Curves of a bounded size that say what all the scores say."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import auc

from guardrail.evaluation.schema import Report
from guardrail.report import evaluation_figures as figures
from guardrail.report.controls import control_rows
from guardrail.report.evaluation_figures import (
    Scores,
    histogram,
    operating_point,
    roc_points,
    scores_by_modality,
)
from guardrail.stats import auroc


def some(n: int, *, decimals: int = 9) -> Scores:
    rng = np.random.default_rng(n)
    high, low = rng.normal(1, 0.5, n), rng.normal(0, 0.5, 2 * n)
    sides = (tuple(side.round(decimals).tolist()) for side in (high, low))
    return Scores("text", *sides, thresholds={"steer": 0.5})


@pytest.mark.parametrize(("n", "decimals"), [(3, 9), (50, 1), (4000, 9)])
def test_the_area_under_a_thinned_curve_is_the_auroc(n, decimals):
    scores = some(n, decimals=decimals)
    fpr, tpr = roc_points(scores)
    assert len(fpr) <= 300
    assert auc(fpr, tpr) == pytest.approx(auroc(scores.harmful, scores.harmless), abs=2e-3)
    assert (fpr[0], tpr[0], fpr[-1], tpr[-1]) == (0, 0, 1, 1)
    assert all(np.diff(fpr) >= 0)
    assert all(np.diff(tpr) >= 0)


def test_points_of_a_thinned_curve_are_points_of_the_whole_one():
    scores = some(3000)
    every = set(zip(*roc_points(scores, 10**6), strict=True))
    assert set(zip(*roc_points(scores, 100), strict=True)) <= every


def test_a_score_at_the_threshold_passes():
    scores = Scores("text", (0.5, 0.6), (0.5, 0.4, 0.7, 0.1), {"steer": 0.5})
    assert operating_point(scores, 0.5) == (0.25, 0.5)


def test_bins_hold_every_score_once():
    scores = some(100)
    edges, shares = histogram(scores, 20)
    assert len(edges) == 21
    assert all(sum(side) == pytest.approx(1) for side in shares.values())
    inside = sum(edges[3] <= s < edges[4] for s in scores.harmful) / 100
    assert shares["harmful"][3] == pytest.approx(inside)


def test_one_label_and_equal_scores_make_a_histogram_too():
    edges, shares = histogram(Scores("text", (0.3, 0.3), (), {}))
    assert shares.keys() == {"harmful"}
    assert edges[0] < 0.3 < edges[-1]


def test_scores_that_differ_by_rounding_alone_make_a_histogram_too():
    close = float(np.nextafter(0.3, 1))
    edges, shares = histogram(Scores("text", (0.3, close), (0.3,), {}))
    assert all(np.diff(edges) > 0)
    assert sum(shares["harmful"]) == pytest.approx(1)


def test_items_are_sorted_by_modality_and_label(report):
    made = Report.model_validate(report(5))
    text, image = scores_by_modality(made)
    assert (text.modality, image.modality) == ("text", "image")
    wanted = [i.score for i in made.items if (i.modality, i.label) == ("image", "harmful")]
    assert image.harmful == tuple(wanted)
    assert image.counts == "5 harmful, 5 harmless"


def test_a_modality_without_thresholds_has_none(report):
    made = report(2)
    made["thresholds"] = {"image": {"flag": 1.0}}
    text, image = scores_by_modality(Report.model_validate(made))
    assert text.thresholds == {}
    assert image.thresholds == {"flag": 1.0}


@pytest.fixture
def drawn(monkeypatch):
    """`drawn(function, *arguments)`: the axes of the figure, and its description."""

    def draw(function, *arguments):
        kept = []

        def keep(figure, title, description):
            kept.append((figure.axes[0], description))

        monkeypatch.setattr(figures, "svg", keep)
        function(*arguments)
        return kept[0]

    return draw


def points(axes):
    """The places of single markers, in the order in which they were drawn."""
    return [
        (float(line.get_xdata()[0]), float(line.get_ydata()[0]))
        for line in axes.lines
        if line.get_marker() not in ("None", None, "") and len(line.get_xdata()) == 1
    ]


def modalities(report):
    return [group for group in Report.model_validate(report).groups if group.by == "modality"]


def test_bars_of_actions_are_the_shares(report, drawn):
    groups = modalities(report(40))
    axes, said = drawn(figures.action_bars, groups)
    widths = [bar.get_width() for bar in axes.patches]
    wanted = [
        100 * share.rate
        for group in groups
        for found in (group.actions["harmful"], group.actions["harmless"])
        for share in (found.passed, found.steered, found.flagged)
    ]
    assert widths == pytest.approx(wanted)
    rates = groups[0].actions["harmful"]
    steered, flagged = f"{rates.steered.rate:.0%} steered", f"{rates.flagged.rate:.0%} flagged"
    assert said.startswith(f"text, harmful: {steered}, {flagged}")


def test_dots_of_refusals_are_the_rates(report, drawn):
    groups = modalities(report(40))
    axes, _ = drawn(figures.refusal_dots, groups)
    wanted = [
        100 * share.rate
        for group in groups
        for found in (group.refusals["harmful"], group.refusals["harmless"])
        for share in (found.plain, found.guarded)
    ]
    assert [x for x, _ in points(axes)] == pytest.approx(wanted)


def test_dots_of_controls_are_their_aurocs(report, drawn):
    controls = Report.model_validate(report(10)).controls[0]
    rows = control_rows(controls)
    axes, _ = drawn(figures.control_dots, "text", controls.guard, rows)
    wanted = [controls.guard.value, *(row.figure.value for row in rows)]
    assert [x for x, _ in points(axes)] == pytest.approx(wanted)


def test_curves_of_strengths_are_the_trials(report, drawn):
    trials = figures.shown_trials(Report.model_validate(report(4, ("text",))).strength)
    axes, _ = drawn(figures.strength_curve, trials)
    curves = {c.get_label().split()[0]: c.lines[0].get_ydata() for c in axes.containers}
    assert list(curves["induced"]) == pytest.approx([100 * t.induced.rate for t in trials])
    assert list(curves["false"]) == pytest.approx([100 * t.false_refusal.rate for t in trials])
