"""What the bars and dots of the page's figures are drawn from."""

from __future__ import annotations

import pytest

from guardrail.report import control_figures, fit_figures, rate_figures
from guardrail.report.controls import control_rows


@pytest.fixture
def drawn(monkeypatch):
    """`drawn(module, function, *arguments)`: the axes of the figure, and its description."""

    def draw(module, function, *arguments):
        kept = []

        def keep(figure, title, description):
            kept.append((figure.axes[0], description))

        monkeypatch.setattr(module, "svg", keep)
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


def test_bars_of_actions_are_the_shares(report, drawn):
    groups = [g for g in report(40)["groups"] if g["by"] == "modality"]
    axes, said = drawn(rate_figures, rate_figures.action_bars, groups)
    widths = [bar.get_width() for bar in axes.patches]
    wanted = [
        100 * group["actions"][label][action]["rate"]
        for group in groups
        for label in ("harmful", "harmless")
        for action in ("passed", "steered", "flagged")
    ]
    assert widths == pytest.approx(wanted)
    rates = groups[0]["actions"]["harmful"]
    steered, flagged = (f"{rates[key]['rate']:.0%} {key}" for key in ("steered", "flagged"))
    assert said.startswith(f"text, harmful: {steered}, {flagged}")


def test_dots_of_refusals_are_the_rates(report, drawn):
    groups = [g for g in report(40)["groups"] if g["by"] == "modality"]
    axes, _ = drawn(rate_figures, rate_figures.refusal_dots, groups)
    wanted = [
        100 * group["refusals"][label][side]["rate"]
        for group in groups
        for label in ("harmful", "harmless")
        for side in ("plain", "guarded")
    ]
    assert [x for x, _ in points(axes)] == pytest.approx(wanted)


def test_dots_of_controls_are_their_aurocs(report, drawn):
    controls = report(10)["controls"][0]
    rows = control_rows(controls)
    axes, _ = drawn(control_figures, control_figures.control_dots, "text", controls["guard"], rows)
    wanted = [controls["guard"]["value"], *(row.value for row in rows)]
    assert [x for x, _ in points(axes)] == pytest.approx(wanted)


def test_curves_of_strengths_are_the_trials(report, drawn):
    trials = fit_figures.shown_trials(report(4, ("text",))["strength"])
    axes, _ = drawn(fit_figures, fit_figures.strength_curve, trials)
    curves = {c.get_label().split()[0]: c.lines[0].get_ydata() for c in axes.containers}
    for name, key in (("induced", "induced"), ("false", "false_refusal")):
        assert list(curves[name]) == pytest.approx([100 * t[key]["rate"] for t in trials])
