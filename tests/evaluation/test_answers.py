from __future__ import annotations

import pytest
import torch
from scipy.special import softmax
from scipy.stats import entropy

from guardrail.decide.detector import Detector
from guardrail.evaluation.answers import (
    PASSED_MEASURED,
    Answer,
    GuardedAnswer,
    Row,
    divergence_from,
    quality,
    to_measure,
)
from guardrail.evaluation.inputs import Input
from guardrail.evaluation.items import EvalItem
from guardrail.evaluation.run import evaluate
from guardrail.evaluation.scores import ItemScores
from guardrail.model.encode import Encoder
from guardrail.model.generate import next_token_logits
from guardrail.policy import Policy
from guardrail.types import Action, Modality


def row(name, action, plain=(1, 2), guarded=(1, 2), label="harmless"):
    item = EvalItem(id=name, label=label, messages=[], text="")
    did = Action(action)
    return Row(
        input=Input(item=item, digest=name, kind="text", modality=Modality.TEXT, group=(0, "")),
        scores=ItemScores(score=0.0, action=did, layers=torch.zeros(1), random=torch.zeros(1)),
        plain=Answer(text="", token_ids=plain),
        guarded=GuardedAnswer(text="", token_ids=guarded, action=did, flagged=False, score=0.0),
    )


def test_figures_are_over_the_harmless_inputs_that_are_answered():
    rows = [
        row("a", "steer", (1, 2, 3), (4,)),
        row("b", "steer", (1, 2), (1, 2)),
        row("c", "pass", (1, 2, 3), (1, 2, 3)),
        row("d", "pass", (5, 6), (5, 7)),
        row("e", "flag"),
        row("f", "steer", label="harmful"),
    ]
    found = quality(rows, {"a": 0.4, "b": 0.2, "c": 1e-9})
    assert (found.n, found.n_steered, found.n_flagged, found.n_passed_measured) == (4, 2, 1, 1)
    assert found.kl == pytest.approx(0.6 / 4)
    assert found.kl_steered == pytest.approx(0.3)
    assert found.kl_passed_max == 1e-9
    assert (found.exact_match.hits, found.exact_match.n) == (2, 4)
    assert (found.exact_match_passed.hits, found.exact_match_passed.n) == (1, 2)
    assert found.length_ratio == pytest.approx(8 / 10)


def test_all_steered_and_some_passed_inputs_are_measured():
    rows = [row(f"s{n}", "steer") for n in range(100)]
    rows += [row(f"p{n}", "pass") for n in range(200)]
    rows += [row("f", "flag"), row("h", "steer", label="harmful")]
    names = {one.id for one in to_measure(rows)}
    assert len(names) == 100 + PASSED_MEASURED
    assert not names & {"f", "h"}


def test_the_divergence_is_that_of_the_guards_edit_at_the_first_token(guard, texts):
    policy = Policy.model_validate({"thresholds": {"text": {"steer": -1e6, "flag": 1e6}}})
    harmless = [item for item in texts if not item.harmful][:5]
    with guard.with_policy(policy) as other:
        found = evaluate(other, harmless, new_tokens=1).quality
    detector = Detector.from_artefact(guard.artefact, policy)
    encoder, wanted = Encoder(guard.loaded), []
    for item in harmless:
        encoded = encoder.encode([item.request(policy)])
        plain, edited = (
            softmax(next_token_logits(guard.loaded, encoded, each)[0].double().numpy())
            for each in (None, detector)
        )
        wanted.append(entropy(plain, edited))
    assert found.kl == pytest.approx(sum(wanted) / 5, rel=1e-4)
    assert found.kl > 1e-3


@pytest.mark.parametrize("data", [b"NaN", b"Infinity", b"[]", b"x", b"null"])
def test_a_kept_divergence_that_is_none_is_refused(data):
    with pytest.raises((ValueError, TypeError)):
        divergence_from(data)
