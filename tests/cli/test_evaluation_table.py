from __future__ import annotations

import io

import pytest

from guardrail.cli.evaluation_table import show_evaluation
from guardrail.evaluation.items import EvalItem
from guardrail.evaluation.run import evaluate
from guardrail.guard import Guard
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
    with Guard(model, tiny_artefact(*model)) as guard:
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
    assert "12/12" in text or f"{report.quality.exact_match.hits}/{report.quality.n}" in text


def test_a_terminal_command_in_the_data_stays_words(report):
    text = shown(report)
    assert "\x1b[31m" not in text
    assert "[31mred" in text


def test_what_was_not_measured_is_left_out_or_said(report):
    thin = report.model_copy(update={"quality": None, "judge": None, "controls": ()})
    text = shown(thin)
    assert "judge" not in text
    assert "time" in text
