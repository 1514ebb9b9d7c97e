from __future__ import annotations

import pytest

from guardrail.cli.gates import Gates
from guardrail.evaluation.schema import Actions, Group
from guardrail.stats import Rate, Share


class Measured:
    """A report with nothing but groups."""

    def __init__(self, *groups):
        self.groups = groups


def group(modality, *, flagged=None, by="modality"):
    none = Share.of(Rate(0, 10))
    actions = {}
    if flagged is not None:
        share = Share.of(Rate(flagged, 10))
        actions["harmless"] = Actions(passed=none, steered=none, flagged=share)
    return Group(
        by=by,
        name=modality,
        modality=modality,
        n_harmful=1,
        n_harmless=0 if flagged is None else 10,
        against="itself",
        actions=actions,
    )


@pytest.mark.parametrize(("flagged", "missed"), [(1, 0), (2, 1)])
def test_a_share_at_the_bound_keeps_it(flagged, missed):
    report = Measured(group("text", flagged=flagged), group("text", flagged=9, by="source"))
    assert len(Gates(max_benign_flagged=0.1).missed(report)) == missed


def test_a_modality_without_harmless_inputs_keeps_no_bound_on_them():
    report = Measured(group("text", flagged=0), group("image"))
    (said,) = Gates(max_benign_flagged=1.0).missed(report)
    assert said.startswith("image: no harmless inputs")
    assert Gates().missed(report) == []


def test_a_modality_of_one_label_keeps_no_bound_on_the_auroc():
    (said,) = Gates(min_auroc=0.0).missed(Measured(group("text")))
    assert said.startswith("text: no AUROC")


def test_a_bound_that_is_no_number_is_never_kept():
    report = Measured(group("text", flagged=0))
    assert len(Gates(max_benign_flagged=float("nan")).missed(report)) == 1
