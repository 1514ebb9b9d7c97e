from __future__ import annotations

import io
import re

import pytest

from guardrail.cli.evaluation_table import show_evaluation
from guardrail.evaluation.items import EvalItem
from guardrail.evaluation.run import evaluate
from guardrail.evaluation.schema import Actions, JudgeFigures, Refusals, Separation
from guardrail.guard import Guard
from guardrail.stats import Estimate, Rate, Share
from guardrail.testing import tiny_artefact, tiny_model


@pytest.fixture(scope="module")
def report():
    model = tiny_model("llama")
    items = [
        EvalItem(
            id=f"{n}",
            label="harmful" if n % 2 else "harmless",
            messages=[{"role": "user", "content": f"say {n}"}],
            text=f"say {n}",
            category="\x1b[31mred",
        )
        for n in range(12)
    ]
    with Guard(model, tiny_artefact(*model, tau_flag=99.0)) as guard:
        return evaluate(guard, items, new_tokens=1)


def shown(report):
    stdout = io.StringIO()
    show_evaluation(stdout, report)
    return stdout.getvalue()


def test_figures_are_those_of_the_report(report):
    text = shown(report)
    found = report.groups[0].separation
    assert f"{found.auroc.value:.3f} ({found.auroc.low:.3f}-{found.auroc.high:.3f})" in text
    assert f"p {report.controls[0].permuted_labels.p_value:.3g}" in text
    exact = report.quality.exact_match
    assert f"{exact.rate:.3f} ({exact.hits}/{exact.n}, {exact.low:.3f}-{exact.high:.3f})" in text


def test_a_terminal_command_in_the_data_stays_words(report):
    text = shown(report)
    assert "\x1b[31m" not in text
    assert "[31mred" in text


def test_what_was_not_measured_is_left_out_or_said(report):
    thin = report.model_copy(update={"quality": None, "judge": None, "controls": ()})
    text = shown(thin)
    assert "judge" not in text
    assert "time" in text


def share(hits):
    return Share.of(Rate(hits, 200))


def estimate(value):
    return Estimate(value=value, low=value - 0.01, high=value + 0.01)


@pytest.fixture
def distinct(report):
    """The report with figures of which no two are equal."""
    separation = Separation(
        n_harmful=6,
        n_harmless=6,
        auroc=estimate(0.91),
        average_precision=estimate(0.82),
        tpr_at_fpr={"0.01": share(11), "0.05": share(12), "0.10": share(13)},
    )
    group = report.groups[0].model_copy(
        update={
            "separation": separation,
            "actions": {"harmful": Actions(passed=share(91), steered=share(92), flagged=share(17))},
            "refusals": {"harmful": Refusals(plain=share(93), guarded=share(94))},
            "found_by": {"last": share(21), "turn": share(22), "window": share(23)},
        }
    )
    judge = JudgeFigures(name="j", sample="s", false_refusals=share(95), missed_refusals=share(96))
    return report.model_copy(update={"groups": (group,), "judge": judge})


def rows_below(text, title):
    """The cells of a table's rows, by what the first cell says."""
    lines = text.split("\n")
    first = next(n for n, line in enumerate(lines) if line.startswith(title))
    rows = [re.split(r"\s{2,}", line.strip()) for line in lines[first + 1 :]]
    return dict(zip(map(str, range(4)), rows, strict=False))


def figure(found):
    return f"{found.value:.3f} ({found.low:.3f}-{found.high:.3f})"


def rate(found, *, counts=False):
    n = f"{found.hits}/{found.n}, " if counts else ""
    return f"{found.rate:.3f} ({n}{found.low:.3f}-{found.high:.3f})"


def test_every_figure_stands_below_its_name(distinct):
    text, (group,) = shown(distinct), distinct.groups
    rows = rows_below(text, "separation")
    assert rows["0"] == ["inputs", "n harmful", "n harmless", "AUROC", "AP", "TPR at 1 %",
                         "at 5 %", "at 10 % FPR"]  # fmt: skip
    found = group.separation
    tpr = [rate(found.tpr_at_fpr[key]) for key in ("0.01", "0.05", "0.10")]
    assert rows["1"] == [
        "text", "6", "6", figure(found.auroc), figure(found.average_precision), *tpr
    ]  # fmt: skip
    rows = rows_below(text, "actions and refusals")
    assert rows["0"][3:] == [
        "steered", "flagged", "refused, plain", "refused or flagged, guarded"
    ]  # fmt: skip
    actions, refusals = group.actions["harmful"], group.refusals["harmful"]
    wanted = (actions.steered, actions.flagged, refusals.plain, refusals.guarded)
    assert rows["1"] == ["text", "harmful", "200", *map(rate, wanted)]
    rows = rows_below(text, "where harmful inputs were found")
    assert rows["0"] == ["inputs", "n", "end of the prompt", "an earlier turn", "within a message"]
    shares = [rate(group.found_by[name]) for name in ("last", "turn", "window")]
    assert rows["1"] == ["text", "200", *shares]
    rows = rows_below(text, "judge")
    assert rows["1"] == [
        "answers called a refusal", rate(distinct.judge.false_refusals, counts=True)
    ]  # fmt: skip
    assert rows["2"] == ["refusals missed", rate(distinct.judge.missed_refusals, counts=True)]
