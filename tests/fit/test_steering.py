"""Where to edit, how far and for how long."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from guardrail.artefact.header import Calibration
from guardrail.decide.detector import Steering
from guardrail.fit import effects
from guardrail.fit import steering as module
from guardrail.fit.collect import Collector, text_request
from guardrail.fit.directions import difference_of_means
from guardrail.fit.effects import Unconditional, kl_divergence, logits_of
from guardrail.fit.joint import JointReadout
from guardrail.fit.recentring import Beside
from guardrail.fit.refusal import is_refusal
from guardrail.fit.select import LinearReadout
from guardrail.fit.steering import (
    FALSE_BOUND,
    FEWER,
    FIRST,
    GARBLED_BOUND,
    KL_BOUND,
    STRONGER,
    TOKENS,
    WEAKER,
    SteeringData,
    SteeringFound,
    Trial,
    calibrate_steering,
    steering_at,
)
from guardrail.policy import Thresholds
from guardrail.stats import Rate
from guardrail.types import Modality
from tests.fit.residuals import form_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
        recentring={"text": (0.0, 1.0)},
        gain=1.0,
        a_max=5.0,
        region_max=5.0,
        tokens=0,
    )
    return Collector(loaded, batch_size=2), edit


def trial(
    induced: int, *, kl: float = 0.01, false: int = 0, broken: int = 0, steering: Any = None
) -> Trial:
    return Trial(
        steering=steering,
        factor=1.0,
        unsteered=Rate(0, 10),
        induced=Rate(induced, 10),
        false_refusal=Rate(false, 1000),
        kl=kl,
        garbled=Rate(broken, 1000),
    )


def data(
    unsafe: Sequence[Request] = UNSAFE, benign: Sequence[Request] = (), total: int = 50
) -> SteeringData:
    return SteeringData({"plain": unsafe}, benign, total)


def test_the_edit_reaches_the_upper_end_of_unsafe_text() -> None:
    generator = torch.Generator().manual_seed(0)
    safe = torch.randn(40, 2, 6, generator=generator)
    unsafe = torch.randn(40, 2, 6, generator=generator) + 2
    directions = difference_of_means(unsafe, safe)
    edit = steering_at(directions, 1, unsafe, {}, factor=1.5, tokens=8)
    unit = directions.direction[1].double()
    base = safe[:, 1].double().mean(0) @ unit
    gap = unsafe[:, 1].double().mean(0) @ unit - base
    upper = ((unsafe[:, 1].double() @ unit - base) / gap).quantile(0.95)
    assert edit.region_max == edit.a_max == pytest.approx(1.5 * float(upper), rel=1e-5)
    assert (edit.zero, edit.gap) == pytest.approx((float(base), float(gap)), rel=1e-4)
    assert (edit.layer, edit.tokens, edit.recentring) == (1, 8, {"text": (0.0, 1.0)})
    # nearly a step: whole at 0.05 above the gate
    assert edit.gain * module.RAMP == pytest.approx(edit.a_max)


def test_what_a_picture_does_along_the_direction_is_taken_back_before_the_region() -> None:
    generator = torch.Generator().manual_seed(0)
    safe, unsafe = (torch.randn(40, 2, 6, generator=generator) + shift for shift in (0, 2))
    directions = difference_of_means(unsafe, safe)
    alone = torch.cat([safe, unsafe])
    towards = directions.direction * directions.norms[:, None].float()
    classes = [False] * 40 + [True] * 40
    shown = Beside(["fit"] * 80, classes, alone, alone + 0.4 * towards)
    edit = steering_at(directions, 1, unsafe, {"image": shown})
    intercept, slope = edit.recentring["image"]
    assert (intercept, slope) == pytest.approx((0.4, 1.0), abs=1e-4)
    far = torch.zeros(1, dtype=torch.float64) + 9
    gate = torch.zeros(1, dtype=torch.float64)
    moved = [
        edit.edits(far, rows[:1, 1], gate, [kind])
        for rows, kind in ((alone, "text"), (shown.beside, "image"))
    ]
    torch.testing.assert_close(moved[0], moved[1], atol=1e-4, rtol=1e-4)


def test_no_more_strength_than_it_takes(towards_refusal: tuple[Collector, Steering]) -> None:
    collect, edit = towards_refusal
    seen: list[tuple[str, int, int]] = []
    collect.progress = lambda *at: seen.append(at)
    trials = calibrate_steering(collect, data(), [edit], PREFIXES)
    assert [t.induced.value for t in trials] == [1.0] * 2
    assert {(t.factor, t.steering.tokens) for t in trials} == {(FIRST, TOKENS), (FIRST, *FEWER)}
    assert all(t.false_refusal == Rate(0, 50) and t.kl == 0.0 for t in trials)
    stage, done, total = seen[-1]
    assert (stage, done) == ("steering strength", total)


def test_a_setting_that_induces_nothing_is_tried_at_every_strength(
    towards_refusal: tuple[Collector, Steering], monkeypatch: pytest.MonkeyPatch
) -> None:
    collect, edit = towards_refusal
    monkeypatch.setattr(effects, "UNLIKELY", 1e9)  # whatever is said counts as an answer
    trials = calibrate_steering(collect, data(), [edit], ["nothing of the kind"])
    assert {t.factor for t in trials} == {FIRST, *STRONGER}
    for one in trials:
        assert one.steering.region_max == pytest.approx(edit.region_max * one.factor)
        assert one.steering.a_max == one.steering.region_max
        assert one.steering.gain * module.RAMP == pytest.approx(one.steering.a_max)
    assert {t.steering.tokens for t in trials} == {TOKENS, *FEWER}
    assert SteeringFound({}, trials).chosen is None


def test_refusals_are_counted_by_group_and_together(
    towards_refusal: tuple[Collector, Steering], picture: Any
) -> None:
    collect, edit = towards_refusal
    groups = {"plain": UNSAFE, "worded": [text_request("hello", images=())] * 2}
    trials = calibrate_steering(collect, SteeringData(groups, [], 50), [edit], PREFIXES)
    for one in trials:
        assert one.induced_by == {"plain": Rate(3, 3), "worded": Rate(2, 2)}
        assert (one.induced, one.unsteered) == (Rate(5, 5), Rate(0, 5))
        assert one.to_dict()["induced_by_group"] == {
            name: rate.to_dict() for name, rate in one.induced_by.items()
        }


def test_an_edit_that_breaks_answers_is_out_of_bounds(
    towards_refusal: tuple[Collector, Steering], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No refusal, and nothing the model would say: that is no help, however little is refused."""
    collect, edit = towards_refusal
    monkeypatch.setattr(effects, "UNLIKELY", 0.0)
    trials = calibrate_steering(collect, data(), [edit], ["nothing of the kind"])
    assert {t.garbled for t in trials} == {Rate(3, 3)}
    assert {t.factor for t in trials} == {FIRST, *WEAKER}
    assert not any(t.within_bounds for t in trials)
    refusing = calibrate_steering(collect, data(), [edit], PREFIXES)
    assert {t.garbled for t in refusing} == {Rate(0, 3)}


def test_benign_prompts_the_gate_leaves_alone_count_in_the_bounds(
    towards_refusal: tuple[Collector, Steering],
) -> None:
    collect, edit = towards_refusal
    few, many = (
        next(
            trial
            for trial in calibrate_steering(collect, data(UNSAFE, BENIGN, n), [edit], PREFIXES)
            if (trial.factor, trial.steering.tokens) == (FIRST, TOKENS)
        )
        for n in (3, 1000)
    )
    detector = Unconditional(few.steering)
    kl = kl_divergence(logits_of(collect, BENIGN), logits_of(collect, BENIGN, detector))
    assert few.kl == pytest.approx(float(kl.mean()), rel=1e-6)
    assert many.kl == pytest.approx(few.kl * 3 / 1000, rel=1e-6)
    assert (few.false_refusal, many.false_refusal) == (Rate(3, 3), Rate(3, 1000))
    assert (few.within_bounds, many.within_bounds) == (False, True)


def test_a_benign_prompt_refused_anyway_is_no_false_refusal(
    towards_refusal: tuple[Collector, Steering], monkeypatch: pytest.MonkeyPatch
) -> None:
    collect, edit = towards_refusal
    begins = effects.answers(collect, BENIGN, None)[0].text
    monkeypatch.setattr(
        effects, "is_refusal", lambda text, some: text == begins or is_refusal(text, some)
    )
    trials = calibrate_steering(collect, data(UNSAFE, BENIGN, 10), [edit], PREFIXES)
    assert {t.false_refusal for t in trials} == {Rate(2, 10)}


def test_weaker_edits_are_tried_where_a_bound_breaks(
    towards_refusal: tuple[Collector, Steering],
) -> None:
    collect, edit = towards_refusal
    trials = calibrate_steering(collect, data(UNSAFE, BENIGN, 3), [edit], ["nothing of the kind"])
    assert {t.factor for t in trials} == {FIRST, *WEAKER}
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
    found = calibrate_steering(collect, data(), [edit, edit], PREFIXES)
    assert [(t.induced.hits, t.kl) for t in found[:3]] == [(7, 0.02), (7, 0.05), (5, 0.01)]
    assert found[-1].induced.hits == 9


@pytest.mark.parametrize(
    ("trials", "chosen"),
    [
        ([], None),
        ([trial(0)], None),
        ([trial(9, kl=KL_BOUND + 0.01)], None),
        ([trial(9, kl=float("nan"))], None),
        ([trial(9, false=round(1000 * FALSE_BOUND) + 1)], None),
        ([trial(9, broken=round(1000 * GARBLED_BOUND) + 1)], None),
        ([trial(9, false=20, broken=100, kl=KL_BOUND)], 0),
        ([trial(1), trial(0)], 0),
    ],
)
def test_an_edit_is_chosen_only_if_it_does_something_within_its_bounds(
    trials: list[Trial], chosen: int | None
) -> None:
    assert SteeringFound({}, trials).chosen is (None if chosen is None else trials[chosen])


def test_the_first_weaker_edit_that_keeps_the_bounds_ends_the_search(
    towards_refusal: tuple[Collector, Steering], monkeypatch: pytest.MonkeyPatch
) -> None:
    collect, edit = towards_refusal

    def trial_at(*args: Any) -> Trial:
        steering, factor = args[2], args[3]
        return dataclasses.replace(
            trial(10, kl=KL_BOUND * 1.8 * factor, steering=steering), factor=factor
        )

    monkeypatch.setattr(module, "_try", trial_at)
    trials = calibrate_steering(collect, data(), [edit], ("x",))
    assert trials[0].factor == WEAKER[1]  # those before it are too strong
    assert trials[0].within_bounds
    assert {t.factor for t in trials} == {FIRST, *WEAKER[:2]}


def gated(score: float, gate: Thresholds) -> bool:
    """Whether a benign prompt of that joint score is among those the gate opens for."""
    safe = form_of(torch.full((1, 2, 3), score), ["calibrate"], ["ordinary"])
    bare = form_of(torch.ones(1, 2, 3), ["select"], ["unsafe"])
    readings: Any = SimpleNamespace(forms={"plain": bare, "worded": safe})
    levels = Calibration(scores=(), thresholds=gate, source="made up", n=0)
    one = torch.ones(1, dtype=torch.float64)
    weight = torch.tensor([[1.0, 0.0, 0.0]])
    joint = JointReadout(LinearReadout("made up", (1,), weight, 0 * one, one))
    found = module._gated(readings, joint, {Modality.TEXT: levels})
    assert found.benign_total == 1
    assert list(found.unsafe) == ["plain"]
    return bool(found.benign)


@pytest.mark.parametrize(
    ("score", "opens"), [(0.4, False), (0.5, False), (0.6, True), (0.9, True), (1.0, False)]
)
def test_the_gate_opens_between_the_thresholds_of_the_joint_score(
    score: float, opens: bool
) -> None:
    """What is flagged is answered by nobody, so no edit can harm it."""
    assert gated(score, Thresholds(steer=0.5, flag=0.9)) is opens
