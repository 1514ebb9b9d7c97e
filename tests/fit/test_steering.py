"""Where to edit, how far and for how long.

Does the direction cause refusals?
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch

from guardrail.decide.detector import Steering
from guardrail.fit import steering as module
from guardrail.fit.collect import Collector, text_request
from guardrail.fit.directions import difference_of_means
from guardrail.fit.steering import (
    FACTORS,
    KL_BOUND,
    TOKENS,
    SteeringData,
    SteeringFound,
    Trial,
    Unconditional,
    calibrate_steering,
    causal_effects,
    kl_divergence,
    logits_of,
    refusal_log_odds,
    refusal_token_ids,
    refused,
    steering_at,
)
from guardrail.model.generate import generate_rows
from guardrail.stats import Rate
from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import Callable

    from guardrail.model.load import LoadedModel
    from guardrail.types import Request

PREFIXES = ("sorry", " sorry")

BENIGN = [text_request(t) for t in ("tell me about the cat", "what is red", "describe the user")]

UNSAFE = [text_request(t) for t in ("tell me about the dog", "make a red dog", "write a blue dog")]


@pytest.fixture
def towards_refusal(plant_in: Callable[..., LoadedModel]) -> tuple[Collector, Steering]:
    """A planted model and an edit that points where its head reads a refusal."""
    loaded = plant_in(strength=0.0, answer=2.0)
    model: Any = loaded.model
    (token,) = loaded.tokenizer.encode(" sorry", add_special_tokens=False)
    row = model.get_output_embeddings().weight[token].detach()
    edit = Steering(
        layer=2,
        direction=torch.nn.functional.normalize(row, dim=0),
        zero=0.0,
        gap=10.0,
        offsets={"text": 0.0},
        gain=1.0,
        a_max=5.0,
        region_max=5.0,
        tokens=0,
    )
    return Collector(loaded, batch_size=2), edit


def trial(induced: int, *, kl: float = 0.01, steering: Any = None) -> Trial:
    return Trial(
        steering=steering,
        factor=1.0,
        unsteered=Rate(0, 10),
        induced=Rate(induced, 10),
        false_refusal=Rate(0, 50),
        kl=kl,
    )


def first_words(collect: Collector, request: Request) -> str:
    """What the model answers by itself, from its first letter on."""
    encoded = collect.encoder.encode([request])
    (row,) = generate_rows(collect.loaded, encoded, None, module.ANSWER)
    return re.sub(r"^\W+", "", collect.loaded.tokenizer.decode(list(row.token_ids)))


def test_the_edit_reaches_the_upper_end_of_unsafe_text() -> None:
    generator = torch.Generator().manual_seed(0)
    safe = torch.randn(40, 2, 6, generator=generator)
    unsafe = torch.randn(40, 2, 6, generator=generator) + 2
    directions = difference_of_means(unsafe, safe)
    edit = steering_at(directions, 1, unsafe, factor=1.5, tokens=8)
    unit = directions.direction[1].double()
    base = safe[:, 1].double().mean(0) @ unit
    gap = unsafe[:, 1].double().mean(0) @ unit - base
    upper = ((unsafe[:, 1].double() @ unit - base) / gap).quantile(0.95)
    assert edit.region_max == edit.a_max == pytest.approx(1.5 * float(upper), rel=1e-5)
    assert (edit.zero, edit.gap) == pytest.approx((float(base), float(gap)), rel=1e-4)
    assert (edit.layer, edit.tokens, edit.offsets) == (1, 8, {"text": 0.0})
    # nearly a step: whole at 0.05 above the gate
    assert edit.gain * module.RAMP == pytest.approx(edit.a_max)


def test_the_answers_beginning_says_whether_a_request_was_refused(
    towards_refusal: tuple[Collector, Steering],
) -> None:
    collect, edit = towards_refusal
    assert refused(collect, BENIGN, None, PREFIXES) == [False] * 3
    assert refused(collect, BENIGN, edit, PREFIXES) == [True] * 3
    assert refused(collect, BENIGN, edit, ["nothing of the kind"]) == [False] * 3
    assert refused(collect, [], edit, PREFIXES) == []


def test_refusals_keep_the_order_of_the_requests(
    towards_refusal: tuple[Collector, Steering],
) -> None:
    collect, _ = towards_refusal
    texts = ["tell me about the red dog please and help", "a", "what is this?", "the"]
    requests = [text_request(text) for text in texts]
    found = refused(collect, requests, None, [first_words(collect, requests[2])])
    assert found == [False, False, True, False]


def test_no_more_strength_than_it_takes(towards_refusal: tuple[Collector, Steering]) -> None:
    collect, edit = towards_refusal
    seen: list[tuple[str, int, int]] = []
    collect.progress = lambda *at: seen.append(at)
    trials = calibrate_steering(collect, SteeringData(UNSAFE, [], 50), [edit], PREFIXES)
    assert [t.induced.value for t in trials] == [1.0] * len(TOKENS)
    assert {(t.factor, t.steering.tokens) for t in trials} == {(FACTORS[0], n) for n in TOKENS}
    assert all(t.false_refusal == Rate(0, 50) and t.kl == 0.0 for t in trials)
    stage, done, total = seen[-1]
    assert (stage, done) == ("steering strength", total)


def test_a_setting_that_induces_nothing_is_tried_at_every_strength(
    towards_refusal: tuple[Collector, Steering],
) -> None:
    collect, edit = towards_refusal
    data = SteeringData(UNSAFE, [], 50)
    trials = calibrate_steering(collect, data, [edit], ["nothing of the kind"])
    assert {t.factor for t in trials} == set(FACTORS)
    assert {t.steering.region_max / edit.region_max for t in trials} == set(FACTORS)
    assert {t.steering.tokens for t in trials} == set(TOKENS)
    assert all(t.steering.a_max == t.steering.region_max for t in trials)
    assert all(t.steering.gain * module.RAMP == pytest.approx(t.steering.a_max) for t in trials)
    assert SteeringFound({}, trials).chosen is None


def test_benign_prompts_the_gate_leaves_alone_count_in_the_bounds(
    towards_refusal: tuple[Collector, Steering],
) -> None:
    collect, edit = towards_refusal
    few, many = (
        next(
            trial
            for trial in calibrate_steering(
                collect, SteeringData(UNSAFE, BENIGN, n), [edit], PREFIXES
            )
            if (trial.factor, trial.steering.tokens) == (FACTORS[0], 0)
        )
        for n in (3, 1000)
    )
    detector = module.Unconditional(few.steering)
    kl = kl_divergence(logits_of(collect, BENIGN), logits_of(collect, BENIGN, detector))
    assert few.kl == pytest.approx(float(kl.mean()), rel=1e-6)
    assert many.kl == pytest.approx(few.kl * 3 / 1000, rel=1e-6)
    assert (few.false_refusal, many.false_refusal) == (Rate(3, 3), Rate(3, 1000))
    assert (few.within_bounds, many.within_bounds) == (False, True)


def test_a_benign_prompt_refused_anyway_is_no_false_refusal(
    towards_refusal: tuple[Collector, Steering],
) -> None:
    collect, edit = towards_refusal
    prefixes = [*PREFIXES, first_words(collect, BENIGN[0])]
    assert refused(collect, BENIGN, None, prefixes) == [True, False, False]
    data = SteeringData(UNSAFE, BENIGN, 10)
    trials = calibrate_steering(collect, data, [edit], prefixes)
    assert {t.false_refusal for t in trials} == {Rate(2, 10)}


def test_raising_stops_where_a_bound_breaks(
    towards_refusal: tuple[Collector, Steering],
) -> None:
    collect, edit = towards_refusal
    data = SteeringData(UNSAFE, BENIGN, 3)
    trials = calibrate_steering(collect, data, [edit], ["nothing of the kind"])
    assert {t.factor for t in trials} == {FACTORS[0], *module.WEAKER}
    assert all(t.kl > KL_BOUND for t in trials)


def test_the_best_trial_keeps_its_bounds_then_induces_most_then_changes_least(
    towards_refusal: tuple[Collector, Steering], monkeypatch: Any
) -> None:
    collect, edit = towards_refusal
    rest = iter([(5, 0.01), (7, 0.05), (7, 0.02), (9, 0.2)])

    def attempt(_collect: Any, _data: Any, steering: Steering, *_rest: Any) -> Trial:
        induced, kl = next(rest, (1, 0.01))
        return trial(induced, kl=kl, steering=steering)

    monkeypatch.setattr(module, "_try", attempt)
    found = calibrate_steering(collect, SteeringData(UNSAFE, [], 10), [edit], PREFIXES)
    assert [(t.induced.hits, t.kl) for t in found[:3]] == [(7, 0.02), (7, 0.05), (5, 0.01)]
    assert found[-1].induced.hits == 9


@pytest.mark.parametrize(
    ("trials", "chosen"),
    [
        ([], None),
        ([trial(0)], None),
        ([trial(9, kl=KL_BOUND + 0.01)], None),
        ([trial(9, kl=float("nan"))], None),
        ([trial(1), trial(0)], 0),
    ],
)
def test_an_edit_is_chosen_only_if_it_does_something_within_its_bounds(
    trials: list[Trial], chosen: int | None
) -> None:
    assert SteeringFound({}, trials).chosen is (None if chosen is None else trials[chosen])


def test_weaker_edits_are_tried_when_the_first_breaks_a_bound(
    towards_refusal: tuple[Collector, Steering], monkeypatch: pytest.MonkeyPatch
) -> None:
    collect, edit = towards_refusal

    def trial_at(*args: Any) -> Trial:
        steering, factor = args[2], args[3]
        return dataclasses.replace(
            trial(10, kl=module.KL_BOUND * 1.6 * factor, steering=steering), factor=factor
        )

    monkeypatch.setattr(module, "_try", trial_at)
    trials = calibrate_steering(collect, SteeringData([text_request("a")], [], 50), [edit], ("x",))
    assert trials[0].factor == 0.5  # 1 and 0.75 are too strong
    assert trials[0].within_bounds
    assert max(t.factor for t in trials) == 1.0


TEXTS = ("tell me about the cat", "what is this?", "how do I make a red picture", "a")


def steering(direction: torch.Tensor, reach: float, *, layer: int = 1) -> Steering:
    """Moves every row by `reach` along the direction, wherever it was."""
    return Steering(
        layer=layer,
        direction=torch.nn.functional.normalize(direction, dim=0),
        zero=0.0,
        gap=1.0,
        offsets={"text": 0.0},
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
