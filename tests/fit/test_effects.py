"""What a model says under an edit: next tokens, refusals, answers that are none."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from guardrail.decide.detector import Steering
from guardrail.fit import effects as module
from guardrail.fit.collect import Collector, text_request
from guardrail.fit.effects import (
    Answer,
    Unconditional,
    answers,
    causal_effects,
    garbled,
    kl_divergence,
    logits_of,
    refusal_log_odds,
    refusal_token_ids,
    refusals,
    surprise,
)
from guardrail.stats import Rate
from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.model.load import LoadedModel

PREFIXES = ("sorry", " sorry")
LOGITS = torch.zeros(4)
TEXTS = ("tell me about the cat", "what is this?", "how do I make a red picture", "a")


def steering(direction: torch.Tensor, reach: float, *, layer: int = 1) -> Steering:
    """Moves every row by `reach` along the direction, wherever it was."""
    return Steering(
        layer=layer,
        direction=torch.nn.functional.normalize(direction, dim=0),
        zero=0.0,
        gap=1.0,
        recentring={"text": (0.0, 1.0)},
        gain=1e3,
        a_max=reach,
        region_max=1e9,
        tokens=0,
    )


@pytest.fixture(scope="module")
def logits() -> torch.Tensor:
    return 3 * torch.randn(5, 11, generator=torch.Generator().manual_seed(0))


def test_log_odds_are_those_of_the_refusal_tokens_together(logits: torch.Tensor) -> None:
    found = refusal_log_odds(logits, [2, 7])
    assert found.dtype == torch.float64
    for row, value in zip(logits.tolist(), found.tolist(), strict=True):
        weights = [math.exp(x) for x in row]
        p = (weights[2] + weights[7]) / sum(weights)
        assert value == pytest.approx(math.log(p / (1 - p)), abs=1e-6)


def test_log_odds_stay_finite_where_probabilities_round_to_zero_or_one() -> None:
    logits = torch.tensor([[2000.0, 0.0, 0.0], [-2000.0, 0.0, 0.0]])
    sure, never = refusal_log_odds(logits, [0]).tolist()
    assert sure == pytest.approx(2000 - math.log(2))
    assert never == pytest.approx(-2000 - math.log(2))


def test_divergence_is_zero_for_equal_and_positive_for_other_distributions(
    logits: torch.Tensor,
) -> None:
    assert kl_divergence(logits, logits).tolist() == [0.0] * 5
    assert kl_divergence(logits, logits + 5).tolist() == pytest.approx([0.0] * 5, abs=1e-6)
    other = logits.flip(0)
    p, q = logits.double().softmax(-1), other.double().softmax(-1)
    expected = [
        sum(a * math.log(a / b) for a, b in zip(x, y, strict=True))
        for x, y in zip(p.tolist(), q.tolist(), strict=True)
    ]
    found = kl_divergence(logits, other)
    assert found.tolist() == pytest.approx(expected, abs=1e-9)
    assert (found >= 0).all()
    assert found[0] != kl_divergence(other, logits)[0]


def test_tokens_a_model_can_never_say_do_not_spoil_the_divergence(logits: torch.Tensor) -> None:
    masked = logits.clone()
    masked[:, 3] = -math.inf
    assert kl_divergence(masked, masked).tolist() == [0.0] * 5
    assert (kl_divergence(masked, masked.flip(0)) >= 0).all()


def test_refusal_tokens_are_the_first_of_each_prefix_once() -> None:
    def tokenize(text: str) -> list[int]:
        return [ord(c) for c in text]

    assert refusal_token_ids(tokenize, ["I'm", "Sorry", "I can't", ""]) == [ord("I"), ord("S")]


def test_an_unconditional_detector_steers_every_row() -> None:
    edit = steering(torch.tensor([3.0, 4.0]), 2.0)
    detector = Unconditional(edit)
    assert (detector.layers, detector.steering_layer, detector.steer_tokens) == ((1,), 1, 0)
    residual = torch.tensor([[-50.0, 0.0], [50.0, 9.0]])
    decision = detector.decide(residual[:, None], ["text", "text"])
    assert decision.actions == [Action.STEER] * 2
    assert decision.failed == [False] * 2
    moved = detector.edit(decision, residual, ["text", "text"])
    torch.testing.assert_close(moved, torch.tensor([[1.2, 1.6]] * 2))


@pytest.fixture
def towards_refusal(plant_in: Any) -> tuple[Collector, Steering]:
    """A planted model and an edit that points where its head reads a refusal."""
    loaded = plant_in(strength=0.0, answer=2.0)
    (token,) = loaded.tokenizer.encode(" sorry", add_special_tokens=False)
    row = loaded.model.get_output_embeddings().weight[token].detach()
    return Collector(loaded, batch_size=2), steering(row, 50.0, layer=2)


def said(collect: Collector, texts: Sequence[str], edit: Steering | None = None) -> list[Answer]:
    return answers(collect, [text_request(text) for text in texts], edit)


def test_the_answers_beginning_says_whether_a_request_was_refused(
    towards_refusal: tuple[Collector, Steering],
) -> None:
    collect, edit = towards_refusal
    assert refusals(said(collect, TEXTS), PREFIXES) == [False] * 4
    assert refusals(said(collect, TEXTS, edit), PREFIXES) == [True] * 4
    assert refusals(said(collect, TEXTS, edit), ["nothing of the kind"]) == [False] * 4
    assert said(collect, [], edit) == []


def test_answers_keep_the_order_of_the_requests(
    towards_refusal: tuple[Collector, Steering],
) -> None:
    collect, _ = towards_refusal
    texts = ["tell me about the red dog please and help", "a", "what is this?", "the"]
    together = said(collect, texts)
    assert [one.request.messages[0].parts[0].text for one in together] == texts
    for one, alone in zip(together, [said(collect, [text])[0] for text in texts], strict=True):
        assert (one.token_ids, one.text) == (alone.token_ids, alone.text)
        torch.testing.assert_close(one.logits, alone.logits, atol=1e-4, rtol=1e-4)
    begins = re.sub(r"^\W+", "", together[2].text)
    assert refusals(together, [begins]) == [False, False, True, False]


@torch.no_grad()
def test_surprise_is_what_the_model_thinks_of_the_whole_answer(llama_loaded: LoadedModel) -> None:
    collect, model = Collector(llama_loaded), llama_loaded.model
    found = said(collect, TEXTS)
    slow = []
    for one in found:
        ids = collect.encoder.encode([one.request]).inputs["input_ids"]
        whole = torch.cat([ids, torch.tensor([one.token_ids])], dim=1)
        logp = model(whole).logits[0].double().log_softmax(-1)
        told = [-logp[ids.shape[1] - 1 + n, token] for n, token in enumerate(one.token_ids)]
        slow.append(float(sum(told)) / len(told))
    assert surprise(collect, found) == pytest.approx(slow, abs=1e-4)


def test_an_answer_is_garbled_that_is_no_refusal_and_that_the_model_would_never_give(
    llama_loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect = Collector(llama_loaded)
    own = said(collect, TEXTS)
    broken = [replace(one, token_ids=one.token_ids[::-1]) for one in own]
    levels = [surprise(collect, some) for some in (own, broken)]
    assert max(levels[0]) < min(levels[1])
    monkeypatch.setattr(module, "UNLIKELY", (max(levels[0]) + min(levels[1])) / 2)
    assert garbled(collect, own, PREFIXES) == Rate(0, 4)
    assert garbled(collect, [*own, *broken[:3]], PREFIXES) == Rate(3, 7)
    refused = [replace(one, text="Sorry, no.") for one in broken]
    assert garbled(collect, [*broken, *refused], ["Sorry"]) == Rate(4, 8)
    silent = Answer(text_request("a"), (), "", LOGITS)
    assert garbled(collect, [silent], PREFIXES) == Rate(0, 1)


def test_answers_to_pictures_are_not_read_again(llava_loaded: LoadedModel, picture: Any) -> None:
    shown = Answer(text_request("a", images=[picture()]), (1, 2), "x", LOGITS)
    text = Answer(text_request("a"), (), "", LOGITS)
    assert garbled(Collector(llava_loaded), [shown, text, shown], PREFIXES) == Rate(0, 1)


def test_logits_keep_the_order_of_the_requests(llama_loaded: LoadedModel) -> None:
    requests = [text_request(text) for text in TEXTS]
    one, all_at_once = (logits_of(Collector(llama_loaded, batch_size=n), requests) for n in (1, 4))
    assert one.shape == (4, len(llama_loaded.tokenizer))
    torch.testing.assert_close(one, all_at_once, atol=1e-4, rtol=1e-4)
    assert len({tuple(row) for row in one.tolist()}) == 4


def test_an_edit_raises_the_token_it_points_to(llama_loaded: LoadedModel) -> None:
    """Steering along a token's own row of the head makes it likelier, against it less likely."""
    model: Any = llama_loaded.model
    requests, token = [text_request(text) for text in TEXTS], 65
    row = model.get_output_embeddings().weight[token].detach()
    collect = Collector(llama_loaded)
    before = refusal_log_odds(logits_of(collect, requests), [token])
    for sign in (1, -1):
        edit = steering(sign * row, 30.0, layer=3)
        after = refusal_log_odds(logits_of(collect, requests, Unconditional(edit)), [token])
        assert (sign * (after - before) > 1).all()


def test_an_edit_of_nothing_changes_nothing(llama_loaded: LoadedModel) -> None:
    requests = [text_request(text) for text in TEXTS]
    collect = Collector(llama_loaded)
    (effect,) = causal_effects(collect, requests, [steering(torch.ones(32), 0.0)], [65])
    assert (effect.log_odds_shift, effect.kl) == (0.0, 0.0)


def test_effects_are_measured_for_each_candidate_and_reported(
    llama_loaded: LoadedModel,
) -> None:
    model: Any = llama_loaded.model
    row = model.get_output_embeddings().weight[65].detach()
    seen: list[tuple[str, int, int]] = []
    collect = Collector(llama_loaded, progress=lambda *at: seen.append(at))
    edits = [steering(row, reach, layer=3) for reach in (1.0, 10.0, 30.0)]
    effects = causal_effects(collect, [text_request(t) for t in TEXTS], edits, [65])
    shifts, kls = [e.log_odds_shift for e in effects], [e.kl for e in effects]
    assert shifts == sorted(shifts)
    assert shifts[0] > 0
    assert kls == sorted(kls)
    assert kls[0] > 0
    assert seen == [("causal effect", i, 3) for i in (1, 2, 3)]
