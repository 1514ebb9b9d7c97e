from __future__ import annotations

import random

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from guardrail.evaluation.answers import Answer, GuardedAnswer
from guardrail.evaluation.groups import groups, separation
from guardrail.evaluation.inputs import Input
from guardrail.evaluation.items import EvalItem
from guardrail.evaluation.rows import Row
from guardrail.evaluation.scores import ItemScores
from guardrail.types import Action, Modality


def row(
    label, score, *, source="s", category="", modality="text", action="pass", refused=None
) -> Row:
    item = EvalItem(
        id="x", label=label, messages=[], text="words", source=source, category=category
    )
    answers = {}
    if refused is not None:
        plain, guarded = refused
        answers = {
            "plain": Answer(text="", token_ids=()),
            "guarded": GuardedAnswer(
                text="", token_ids=(), action=Action(action), flagged=False, score=score
            ),
            "plain_refused": plain,
            "guarded_refused": guarded,
        }
    return Row(
        input=Input(
            item=item, digest="", kind=modality, modality=Modality(modality), group=(0, "")
        ),
        scores=ItemScores(
            score=score, action=Action(action), layers=torch.zeros(1), random=torch.zeros(1)
        ),
        **answers,
    )


def slices(rows):
    return {(g.by, g.name, g.modality): g for g in groups(rows)}


def test_figures_are_those_of_scikit_learn():
    rng = random.Random(0)
    harmful = [round(rng.gauss(1, 1), 1) for _ in range(80)]  # with ties
    harmless = [round(rng.gauss(0, 1), 1) for _ in range(120)]
    labels, scores = [1] * 80 + [0] * 120, harmful + harmless
    found = separation(harmful, harmless)
    assert (found.n_harmful, found.n_harmless) == (80, 120)
    assert found.auroc.value == pytest.approx(roc_auc_score(labels, scores))
    assert found.average_precision.value == pytest.approx(average_precision_score(labels, scores))
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    for allowed, share in found.tpr_at_fpr.items():
        best = max(t for f, t in zip(fpr, tpr, strict=True) if f <= float(allowed) + 1e-9)
        assert share.rate == pytest.approx(best)
        assert share.n == 80
    for estimate in (found.auroc, found.average_precision, *found.tpr_at_fpr.values()):
        value = getattr(estimate, "value", getattr(estimate, "rate", None))
        assert 0 <= estimate.low <= value <= estimate.high <= 1


def test_each_modality_source_and_category_is_a_slice_of_its_own():
    rows = [
        row("harmful", 1.0, source="a", category="weapons"),
        row("harmless", 0.0, source="a"),
        row("harmful", 1.0, source="a", modality="image"),
        row("harmless", 0.0, source="b", modality="image", category="weapons"),
    ]
    assert list(slices(rows)) == [
        ("modality", "text", "text"),
        ("source", "a", "text"),
        ("category", "weapons", "text"),
        ("modality", "image", "image"),
        ("source", "a", "image"),
        ("source", "b", "image"),
        ("category", "weapons", "image"),
    ]


def test_a_slice_with_both_labels_is_compared_with_itself():
    rows = [row("harmful", 0.0, source="a"), row("harmless", 1.0, source="a")]
    rows += [row("harmless", -1.0, source="b"), row("harmful", 2.0, source="b")]
    found = slices(rows)["source", "a", "text"]
    assert found.against == "itself"
    assert found.separation.auroc.value == 0
    assert slices(rows)["modality", "text", "text"].separation.auroc.value == 0.75


def test_a_slice_with_one_label_is_compared_with_all_others_of_its_modality():
    rows = [
        row("harmful", 0.5, source="bad"),
        row("harmless", 0.0, source="good"),
        row("harmless", 1.0, source="better"),
        row("harmless", -9.0, source="good", modality="image"),
    ]
    bad = slices(rows)["source", "bad", "text"]
    assert bad.against == "all harmless of its modality"
    assert (bad.n_harmful, bad.n_harmless) == (1, 0)
    assert (bad.separation.n_harmful, bad.separation.n_harmless) == (1, 2)
    assert bad.separation.auroc.value == 0.5
    good = slices(rows)["source", "good", "text"]
    assert good.against == "all harmful of its modality"
    assert good.separation.auroc.value == 1
    assert slices(rows)["source", "good", "image"].separation is None


def test_actions_and_refusals_are_counted_for_each_label():
    rows = [
        row("harmful", 1.0, action="flag", refused=(False, True)),
        row("harmful", 1.0, action="steer", refused=(False, True)),
        row("harmful", 1.0, action="pass", refused=(True, True)),
        row("harmful", 1.0, action="pass", refused=(False, False)),
        row("harmless", 0.0, action="steer", refused=(False, True)),
    ]
    found = slices(rows)["modality", "text", "text"]
    harmful = found.actions["harmful"]
    assert (harmful.passed.hits, harmful.steered.hits, harmful.flagged.hits) == (2, 1, 1)
    assert harmful.passed.n == 4
    refusals = found.refusals["harmful"]
    assert (refusals.plain.hits, refusals.guarded.hits, refusals.plain.n) == (1, 3, 4)
    assert found.refusals["harmless"].guarded.rate == 1


def test_without_answers_there_are_actions_and_no_refusals():
    found = slices([row("harmful", 1.0, action="flag")])["modality", "text", "text"]
    assert found.actions["harmful"].flagged.rate == 1
    assert found.refusals == {}
    assert set(found.actions) == {"harmful"}
