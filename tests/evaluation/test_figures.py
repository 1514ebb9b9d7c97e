from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from guardrail.evaluation.answers import Answer, GuardedAnswer, Row
from guardrail.evaluation.figures import (
    TooFewError,
    controls,
    groups,
    length_matched,
    length_only,
    matched_pairs,
    permuted_labels,
    separation,
    text_baseline,
)
from guardrail.evaluation.inputs import Input
from guardrail.evaluation.items import EvalItem
from guardrail.evaluation.scores import ItemScores, random_directions
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


def worded(label, score, text, *, number=0, modality="text", random_scores=None):
    item = EvalItem(id=f"{label}-{number}", label=label, messages=[], text=text)
    scores = ItemScores(
        score=score,
        action=Action.PASS,
        layers=torch.zeros(2),
        random=torch.zeros(20) if random_scores is None else random_scores,
    )
    given = Input(
        item=item, digest=str(number), kind=modality, modality=Modality(modality), group=(0, "")
    )
    return Row(input=given, scores=scores)


def rows(n, *, harmful_text, harmless_text, gap=2.0, seed=0):
    rng = random.Random(seed)
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(n):
        for label, text, mean in (("harmful", harmful_text, gap), ("harmless", harmless_text, 0.0)):
            noise = torch.randn(20, generator=generator)
            made.append(
                worded(
                    label, rng.gauss(mean, 1), text(number, rng), number=number, random_scores=noise
                )
            )
    return made


def neutral(number, rng):
    return " ".join(
        rng.choices("alpha beta gamma delta epsilon zeta".split(), k=rng.randint(3, 12))
    )


def test_a_set_that_words_alone_separate_is_caught_by_the_text_baseline():
    made = rows(
        40,
        harmful_text=lambda n, rng: f"bomb {neutral(n, rng)}",
        harmless_text=lambda n, rng: f"bread {neutral(n, rng)}",
    )
    (found,) = controls(made)
    assert found.text_baseline.auroc.value > 0.99
    assert 0.3 < found.length_only.auroc.value < 0.7


def test_words_that_tell_nothing_give_a_baseline_near_chance():
    made = rows(60, harmful_text=neutral, harmless_text=neutral)
    (found,) = controls(made)
    assert abs(found.text_baseline.auroc.value - 0.5) < 0.15
    assert found.text_baseline.auroc.low < 0.5 < found.text_baseline.auroc.high


def test_random_directions_are_near_chance_on_average():
    made = rows(60, harmful_text=neutral, harmless_text=neutral)
    (found,) = controls(made)
    assert len(found.random_directions.aurocs) == 20
    assert abs(found.random_directions.mean - 0.5) < 0.05


def test_random_directions_are_unit_vectors_and_the_same_each_time():
    directions = random_directions(torch.zeros(3, 64))
    assert directions.shape == (20, 3, 64)
    assert torch.allclose(directions.norm(dim=-1), torch.ones(20, 3, dtype=torch.float64))
    assert torch.equal(directions, random_directions(torch.ones(3, 64)))
    overlap = (directions[0] * directions[1]).sum(-1).abs()
    assert float(overlap.max()) < 0.5


def test_length_alone_catches_a_set_that_length_separates_and_matching_removes_it():
    """The score here is the length itself, so that with equal lengths nothing is left of it."""
    rng = random.Random(3)
    made = []
    for number in range(200):
        for label, low, high in (("harmful", 40, 140), ("harmless", 10, 110)):
            length = rng.randint(low, high)
            made.append(worded(label, float(length), "x" * length, number=number))
    (found,) = controls(made)
    assert found.length_only.either_way > 0.65
    assert found.guard.value == found.length_only.auroc.value
    assert found.length_matched.pairs > 100
    assert abs(found.length_matched.auroc.value - 0.5) < 0.05
    assert abs(found.length_matched.length_auroc - 0.5) < 0.05


def test_length_below_chance_is_still_told_either_way():
    found = length_only([1, 2, 3, 4, 5], [10, 20, 30, 40, 50])
    assert found.auroc.value == 0
    assert found.either_way == 1


def test_permuted_labels_agree_with_the_rank_test():
    rng = np.random.default_rng(0)
    harmful, harmless = rng.normal(0.35, 1, 40).tolist(), rng.normal(0, 1, 50).tolist()
    found = permuted_labels(harmful, harmless, draws=20_000)
    wanted = mannwhitneyu(harmful, harmless, alternative="greater").pvalue
    assert found.p_value == pytest.approx(wanted, rel=0.15)
    assert abs(found.mean - 0.5) < 0.005
    assert found.sd == pytest.approx(((40 + 50 + 1) / (12 * 40 * 50)) ** 0.5, rel=0.05)


def test_permuted_labels_in_small_chunks_are_the_same_test(monkeypatch):
    harmful, harmless = [3.0, 4, 5, 6, 7], [1.0, 2, 3, 4, 5]
    whole = permuted_labels(harmful, harmless)
    monkeypatch.setattr("guardrail.evaluation.figures._AT_ONCE", 35)
    parts = permuted_labels(harmful, harmless)
    assert parts.draws == whole.draws == 1000
    assert parts.p_value == pytest.approx(whole.p_value, abs=0.02)


def test_equal_scores_have_no_significance():
    assert permuted_labels([1.0] * 6, [1.0] * 6).p_value == 1


def test_matching_finds_as_many_pairs_as_any_assignment():
    from scipy.sparse import csr_matrix
    from scipy.sparse.csgraph import maximum_bipartite_matching

    rng = random.Random(1)
    for _ in range(200):
        first = [rng.randint(0, 40) for _ in range(rng.randint(0, 12))]
        second = [rng.randint(0, 40) for _ in range(rng.randint(0, 12))]
        pairs = matched_pairs(first, second, 3)
        assert all(abs(first[i] - second[j]) <= 3 for i, j in pairs)
        assert len({i for i, _ in pairs}) == len({j for _, j in pairs}) == len(pairs)
        if first and second:
            allowed = csr_matrix([[abs(a - b) <= 3 for b in second] for a in first], dtype=int)
            best = (maximum_bipartite_matching(allowed) >= 0).sum()
            assert len(pairs) == best


@pytest.mark.parametrize("n", [1, 2, 4])
def test_too_few_inputs_leave_controls_out_and_say_why(n):
    (found,) = controls(rows(n, harmful_text=neutral, harmless_text=neutral))
    assert found.n_harmful == n
    assert found.random_directions is found.permuted_labels is found.text_baseline is None
    assert set(found.skipped) == {
        "random_directions",
        "permuted_labels",
        "text_baseline",
        "length_only",
        "length_matched",
    }
    assert all("needed" in reason for reason in found.skipped.values())


def test_between_the_two_bounds_only_what_is_trained_is_left_out():
    (found,) = controls(rows(7, harmful_text=neutral, harmless_text=neutral))
    assert found.permuted_labels is not None
    assert found.text_baseline is None
    assert "at least 10" in found.skipped["text_baseline"]


def test_a_modality_with_one_label_has_no_controls():
    made = rows(6, harmful_text=neutral, harmless_text=neutral)
    alone = [worded("harmful", 1.0, "x", number=n, modality="image") for n in range(9)]
    assert [found.modality for found in controls([*made, *alone])] == ["text"]


@pytest.mark.parametrize("text", ["", "!!! ??"])
def test_inputs_without_words_have_no_text_baseline(text):
    with pytest.raises(TooFewError, match="no words"):
        text_baseline([text] * 10, [text] * 10)


def test_lengths_that_never_meet_give_no_matched_pairs():
    with pytest.raises(TooFewError, match="0 pairs"):
        length_matched([1.0] * 6, [0.0] * 6, [10] * 6, [90] * 6)


def test_pairs_keep_their_own_scores():
    found = length_matched(
        [5.0, 4, 3, 2, 1, 0],
        [0.0, 0, 0, 0, 0, 9],
        [50, 40, 30, 20, 10, 900],
        [10, 20, 30, 40, 50, 500],
    )
    assert found.pairs == 5
    assert found.auroc.value == 1  # neither the 0 nor the 9 has a partner


def test_every_pair_of_labels_is_compared_within_its_modality():
    made = rows(12, harmful_text=neutral, harmless_text=neutral)
    seen = [
        worded(label, 5.0 if label == "harmless" else 0.0, "x" * n, number=n, modality="image")
        for label, n in itertools.product(("harmful", "harmless"), range(6))
    ]
    text, image = controls([*made, *seen])
    assert text.guard.value > 0.8
    assert image.guard.value == 0
