"""The detector: scores, actions and edits of a batch, from an artefact and a policy."""

from __future__ import annotations

import dataclasses
import logging
import math
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.artefact.header import Line
from guardrail.decide.detector import Decision, Detector
from guardrail.decide.reading import Found
from guardrail.errors import CalibrationError, ConfigurationError, DetectorError
from guardrail.fit.select import ESTIMATORS, averaged, readout
from guardrail.policy import Policy, Thresholds
from guardrail.testing import tiny_artefact
from guardrail.types import Action, Modality

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guardrail.artefact import Artefact

KINDS = ("text", "image", "images", "video")
TEXT, IMAGE = Thresholds(steer=0.5, flag=1.0), Thresholds(steer=0.75, flag=2.0)
VIDEO = Thresholds(steer=1.0, flag=3.0)


@pytest.fixture(scope="session")
def artefact(llava: Any) -> Artefact:
    return tiny_artefact(llava.model, llava.processor, seed=2)


@pytest.fixture(scope="session")
def detect_only(llava: Any) -> Artefact:
    return tiny_artefact(llava.model, llava.processor, seed=2, steering=False)


@pytest.fixture(scope="session")
def detector(artefact: Artefact) -> Callable[..., Detector]:
    """`detector(mode="shadow")`: with the thresholds above unless others are given."""

    def make(made_from: Artefact = artefact, **policy: Any) -> Detector:
        own = {Modality.TEXT: TEXT, Modality.IMAGE: IMAGE, Modality.VIDEO: VIDEO}
        policy.setdefault("thresholds", own)
        return Detector.from_artefact(made_from, Policy(**policy))

    return make


def rows_scoring(detector: Detector, scores: Sequence[float], kinds: Sequence[str]) -> torch.Tensor:
    """Residuals (rows, k, d_model) float64 with exactly these scores, to rounding."""
    read = detector.readout
    rows = []
    for score, kind in zip(scores, kinds, strict=True):
        intercept, slope = read.recentring[kind]
        along = read.zero + (intercept + slope * score) * read.gap
        weight = read.weight.double()
        rows.append(along[:, None] * weight / weight.square().sum(-1, keepdim=True))
    return torch.stack(rows).double()


def at_steering_layer(detector: Detector, local: Sequence[float], kinds: Sequence[str]) -> Any:
    """Residuals (rows, d_model) whose re-centred score at the steering layer is `local`."""
    s = detector.steering
    generator = torch.Generator().manual_seed(9)
    noise = torch.randn(len(kinds), len(s.direction), generator=generator).double()
    unit = s.direction.double() / s.direction.double().norm()
    lines = [s.recentring[kind] for kind in kinds]
    wanted = torch.tensor(
        [s.zero + (b + m * x) * s.gap for x, (b, m) in zip(local, lines, strict=True)]
    )
    return (noise - (noise @ unit)[:, None] * unit + wanted[:, None] * unit).float()


def local_scores(detector: Detector, residual: torch.Tensor, kinds: Sequence[str]) -> torch.Tensor:
    s = detector.steering
    read = residual.double() @ s.direction.double()
    line = torch.tensor([s.recentring[kind] for kind in kinds], dtype=torch.float64)
    return ((read - s.zero) / s.gap - line[:, 0]) / line[:, 1]


@pytest.mark.parametrize("estimator", list(ESTIMATORS))
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10_000), layers=st.sets(st.integers(0, 3), min_size=1))
def test_scores_are_those_of_the_fit(
    artefact: Artefact, detector: Any, estimator: str, seed: int, layers: set[int]
) -> None:
    generator, random = torch.Generator().manual_seed(seed), Random(seed)
    safe = torch.randn(20, 4, 32, generator=generator)
    unsafe = 0.3 + torch.randn(20, 4, 32, generator=generator)
    single = [readout(estimator, layer, [unsafe], [safe]) for layer in layers]
    made = averaged([one for one in single if one is not None])
    lines = {kind: (random.uniform(-1, 1), random.uniform(0.3, 1.2)) for kind in KINDS[1:]}
    tensors = {
        "readout_weight": made.weight,
        "readout_zero": made.zero,
        "readout_gap": made.gap,
    }
    header = artefact.header
    recentring = {
        kind: row.model_copy(update={"score": Line(intercept=lines[kind][0], slope=lines[kind][1])})
        for kind, row in header.recentring.items()
    }
    steering = header.steering.model_copy(update={"layer": max(layers)})
    fitted = artefact.revised(
        tensors=artefact.tensors | tensors,
        readout=header.readout.model_copy(update={"layers": made.layers}),
        recentring=recentring,
        steering=steering,
    )
    rows = torch.randn(len(KINDS), 4, 32, generator=generator)
    online = detector(fitted)
    found = online.decide(rows[:, list(online.layers)], KINDS).scores
    expected = replace(made, recentring=lines).scores(rows, KINDS)
    assert found.tolist() == pytest.approx(expected.tolist(), abs=1e-5)


def test_what_steers_is_read_from_the_steering_layer_kind_by_kind(
    artefact: Artefact, detector: Any
) -> None:
    at = artefact.header.steering.layer
    unit = torch.nn.functional.one_hot(torch.arange(4), 32).float()  # another one for each layer
    safe = torch.full((4, 32), 9.0)
    safe[at] = 0.0
    safe[at, at] = -1.5
    unsafe = safe.clone()
    unsafe[at, :2] += torch.tensor([3.0, 4.0])  # not along the direction: the gap is the distance
    lines = {"image": (0.25, 0.5), "images": (-0.5, 0.75), "video": (2.0, 1.0)}
    recentring = {
        kind: artefact.header.recentring[kind].model_copy(
            update={"steering": Line(intercept=b, slope=m)}
        )
        for kind, (b, m) in lines.items()
    }
    tensors = artefact.tensors | {"direction": unit, "mu_safe": safe, "mu_unsafe": unsafe}
    found = detector(artefact.revised(tensors=tensors, recentring=recentring)).steering
    assert torch.equal(found.direction, unit[at])
    assert (found.layer, found.zero, found.gap) == (at, -1.5, 5.0)
    assert found.recentring == {"text": (0.0, 1.0), **lines}


def test_every_row_is_judged_by_the_thresholds_of_its_kind(detector: Any) -> None:
    guard = detector()
    scores = [0.6, 0.6, 0.8, 0.6, 1.5, 1.5, 2.5, 4.0]
    kinds = list(KINDS) * 2
    decision = guard.decide(rows_scoring(guard, scores, kinds), kinds)
    assert decision.scores.tolist() == pytest.approx(scores)
    steer, flag, skip = Action.STEER, Action.FLAG, Action.PASS
    assert decision.actions == [steer, skip, steer, skip, flag, steer, flag, flag]
    assert decision.failed == [False] * 8
    verdict = guard.verdict(decision, 7, "video")
    assert verdict.modality is Modality.VIDEO
    assert (verdict.tau_steer, verdict.tau_flag) == (VIDEO.steer, VIDEO.flag)


def test_a_score_equal_to_its_threshold_passes(detector: Any) -> None:
    guard = detector()
    rows = rows_scoring(guard, [0.6], ["text"])
    exact = float(guard.decide(rows, ["text"]).scores)
    equal = Thresholds(steer=exact, flag=exact)
    below = Thresholds(steer=math.nextafter(exact, -1), flag=exact)
    for thresholds, action in ((equal, Action.PASS), (below, Action.STEER)):
        guard = detector(thresholds={Modality.TEXT: thresholds})
        assert guard.decide(rows, ["text"]).actions == [action]


def test_rows_do_not_depend_on_their_company(detector: Any) -> None:
    guard = detector()
    kinds = ["text", "images", "image"]
    rows = rows_scoring(guard, [0.1, 3.0, 0.9], kinds)
    together = guard.decide(rows, kinds)
    alone = [guard.decide(rows[i : i + 1], kinds[i : i + 1]) for i in range(3)]
    assert together.scores.tolist() == [float(d.scores) for d in alone]
    assert together.actions == [d.actions[0] for d in alone]


@pytest.mark.parametrize(("fail", "action"), [("closed", Action.FLAG), ("open", Action.PASS)])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_row_without_a_number_gets_the_fail_mode(
    detector: Any, caplog: Any, fail: str, action: Action, bad: float
) -> None:
    guard = detector(fail=fail)
    rows = rows_scoring(guard, [0.0, 0.6], ["text", "text"])
    rows[0, 0, 0] = bad
    with caplog.at_level(logging.ERROR):
        decision = guard.decide(rows, ["text", "text"])
    assert decision.actions == [action, Action.STEER]
    assert decision.failed == [True, False]
    assert "1 of 2 rows" in caplog.text
    verdict = guard.verdict(decision, 0, "text")
    assert (verdict.action, verdict.score, verdict.reason) == (action, None, "detector_failed")


def test_a_failed_row_is_flagged_though_flagging_is_not_allowed(detector: Any) -> None:
    guard = detector(actions={Action.STEER}, fail="closed")
    rows = rows_scoring(guard, [0.0], ["text"]) * math.nan
    assert guard.decide(rows, ["text"]).actions == [Action.FLAG]


@pytest.mark.parametrize(
    ("unsteerable", "action"),
    [("flag", Action.FLAG), ("caution", Action.STEER), ("pass", Action.STEER)],
)
def test_without_a_steering_layer_the_policy_says_what_a_steer_becomes(
    detector: Any, detect_only: Artefact, unsteerable: str, action: Action
) -> None:
    guard = detector(detect_only, unsteerable=unsteerable)
    assert guard.steering_layer is None
    assert guard.steer_tokens == 0
    rows = rows_scoring(guard, [0.2, 0.6, 1.2], ["text"] * 3)
    assert guard.decide(rows, ["text"] * 3).actions == [Action.PASS, action, Action.FLAG]


def test_with_a_steering_layer_unsteerable_changes_nothing(detector: Any) -> None:
    guard = detector(unsteerable="flag")
    rows = rows_scoring(guard, [0.6], ["text"])
    assert guard.decide(rows, ["text"]).actions == [Action.STEER]


def test_a_detect_only_artefact_has_no_edit(detector: Any, detect_only: Artefact) -> None:
    guard = detector(detect_only)
    decision = guard.decide(rows_scoring(guard, [0.6], ["text"]), ["text"])
    with pytest.raises(ConfigurationError, match="only detects"):
        guard.edit(decision, torch.zeros(1, 32), ["text"])


@settings(max_examples=80, deadline=None)
@given(
    own=st.floats(-2, 5),
    floor=st.just(-math.inf) | st.floats(-2, 5),
    kind=st.sampled_from(KINDS),
    allowed=st.sets(st.sampled_from([Action.STEER, Action.FLAG])),
)
def test_a_row_with_a_floor_is_treated_as_one_that_scores_the_higher_of_both(
    detector: Any, own: float, floor: float, kind: str, allowed: set[Action]
) -> None:
    guard = detector(actions=allowed)
    rows = rows_scoring(guard, [own, 0.0], [kind, "text"])
    own = float(guard.decide(rows, [kind, "text"]).scores[0])
    found = guard.decide(rows, [kind, "text"], floors=[floor, -math.inf])
    wanted = max(own, floor)
    assert float(found.scores[0]) == wanted
    assert found.actions == [guard.action_for(wanted, kind), Action.PASS]
    assert found.failed == [False, False]
    if found.actions[0] is Action.STEER:
        kinds, there = [kind, "text"], at_steering_layer(guard, [0.0, 0.0], [kind, "text"])
        edit = float(guard.edit(found, there, kinds)[0].norm()) / guard.steering.gap
        gate = guard.thresholds_for(kind).steer
        assert edit == pytest.approx(min(wanted - gate, 2.0), abs=1e-4)  # the ramp, gain 1


@pytest.mark.parametrize(
    ("fail", "own", "floor", "action", "score"),
    [
        ("closed", 0.2, math.nan, Action.FLAG, None),
        ("closed", 5.0, math.nan, Action.FLAG, None),
        ("closed", math.nan, 5.0, Action.FLAG, None),
        ("closed", -math.inf, 0.2, Action.FLAG, None),
        ("closed", math.inf, 0.2, Action.FLAG, None),
        ("closed", -math.inf, -math.inf, Action.FLAG, None),
        ("open", 0.2, math.nan, Action.PASS, None),
        ("open", math.nan, 0.2, Action.PASS, None),
        ("open", math.nan, math.nan, Action.PASS, None),
        ("open", 2.0, math.nan, Action.STEER, 2.0),
        ("open", math.nan, 5.0, Action.FLAG, 5.0),
        ("open", -math.inf, 0.2, Action.PASS, None),
        ("open", math.inf, 5.0, Action.FLAG, 5.0),
    ],
)
def test_an_outage_in_a_part_is_one_of_the_whole_but_hides_no_finding_where_it_passes(
    detector: Any, fail: str, own: float, floor: float, action: Action, score: float | None
) -> None:
    guard = detector(fail=fail)
    rows, beside = rows_scoring(guard, [own], ["video"]), [Found(floor, None)]
    for told in ({"floors": [floor]}, {"beside": beside}):
        decision = guard.decide(rows, ["video"], **told)
        assert decision.actions == [action]
        assert decision.failed == [score is None]
        found = guard.verdict(decision, 0, "video").score
        assert found == (None if score is None else pytest.approx(score))


@pytest.mark.parametrize(
    ("own", "score", "wanted"),
    [
        (5.0, 0.2, 0.2),
        (0.2, 5.0, 5.0),
        (5.0, math.nan, None),
        (math.nan, 0.2, None),
        (-math.inf, 0.2, None),
    ],
)
def test_a_last_position_that_does_not_count_raises_no_score_but_hides_no_outage(
    detector: Any, own: float, score: float, wanted: float | None
) -> None:
    guard = detector()
    rows = rows_scoring(guard, [own, 0.7], ["image", "text"])
    beside = [Found(score, None, alone=True), Found(0.3, None)]
    decision = guard.decide(rows, ["image", "text"], beside)
    assert decision.failed == [wanted is None, False]
    assert float(decision.scores[1]) == pytest.approx(0.7)
    if wanted is not None:
        assert float(decision.scores[0]) == wanted
        assert decision.last.tolist() == pytest.approx([own, 0.7])
        floored = guard.decide(rows, ["image", "text"], beside, [1.5, 1.5])
        assert floored.scores.tolist() == [max(wanted, 1.5), 1.5]


def test_an_artefact_without_videos_knows_three_kinds_and_no_thresholds_for_them(
    llava: Any, detector: Any
) -> None:
    guard = detector(tiny_artefact(llava.model, llava.processor, video=False))
    assert guard.kinds == ("text", "image", "images")
    assert set(guard.thresholds) == {Modality.TEXT, Modality.IMAGE}
    assert guard.decide(rows_scoring(guard, [0.6], ["image"]), ["image"]).actions == [Action.PASS]
    assert detector().kinds == KINDS


def test_a_kind_of_no_modality_is_judged_by_no_others_thresholds(detector: Any) -> None:
    guard = detector()
    with pytest.raises(DetectorError, match="no modality has the offset kind 'audio'"):
        guard.thresholds_for("audio")
    with pytest.raises(DetectorError, match="'audio'"):
        guard.verdict(None, 0, "audio")


def test_only_steered_rows_are_edited(detector: Any) -> None:
    guard = detector()
    scores = [0.2, 0.9, 1.2, math.nan, 1.5, 0.7]
    kinds = ["text", "text", "text", "text", "image", "image"]
    rows = rows_scoring(guard, scores, kinds)
    decision = guard.decide(rows, kinds)
    residual = at_steering_layer(guard, [0.0] * 6, kinds)
    edits = guard.edit(decision, residual, kinds)
    assert edits.dtype == torch.float32
    assert [bool(edit.any()) for edit in edits] == [a is Action.STEER for a in decision.actions]
    assert [i for i, a in enumerate(decision.actions) if a is Action.STEER] == [1, 4]


def test_an_edit_lies_along_the_direction_and_follows_the_ramp(detector: Any) -> None:
    guard = detector(thresholds={Modality.TEXT: Thresholds(steer=0.5, flag=9.0)})
    s = guard.steering
    scores = [0.75, 1.5, 5.0]  # gain 1, a_max 2, region 3
    kinds = ["text"] * 3
    decision = guard.decide(rows_scoring(guard, scores, kinds), kinds)
    edits = guard.edit(decision, at_steering_layer(guard, [0.0, 0.0, 1.5], kinds), kinds)
    cosines = torch.nn.functional.cosine_similarity(edits, s.direction[None], dim=-1)
    assert cosines.tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    assert (edits.norm(dim=-1) / s.gap).tolist() == pytest.approx([0.25, 1.0, 1.5], abs=1e-5)


def test_pictures_are_edited_by_their_own_gate_and_line(detector: Any) -> None:
    guard = detector()
    kinds = ["image", "images"]
    decision = guard.decide(rows_scoring(guard, [1.0, 1.0], kinds), kinds)
    residual = at_steering_layer(guard, [2.9, 2.9], kinds)  # 0.1 below the edge of the region
    edits = guard.edit(decision, residual, kinds)
    # a picture contracts scores, so a step of that length is a longer one once they are re-centred
    step = [0.1 * guard.steering.recentring[kind][1] for kind in kinds]
    assert (edits.norm(dim=-1) / guard.steering.gap).tolist() == pytest.approx(step, abs=1e-4)
    free = guard.edit(decision, at_steering_layer(guard, [0.0, 0.0], kinds), kinds)
    assert (free.norm(dim=-1) / guard.steering.gap).tolist() == pytest.approx([0.25] * 2, abs=1e-4)


def test_the_gate_is_as_exact_as_the_score(detector: Any) -> None:
    gate = 0.1  # not a float32 number: rounded, it lies above the score below
    guard = detector(thresholds={Modality.TEXT: Thresholds(steer=gate, flag=9.0)})
    guard.steering = replace(guard.steering, gain=1e9)
    score = torch.tensor([gate + 5e-10], dtype=torch.float64)
    decision = Decision(score, [Action.STEER], [False])
    edit = guard.edit(decision, at_steering_layer(guard, [0.0], ["text"]), ["text"])
    assert float(edit.norm()) / guard.steering.gap == pytest.approx(0.5, abs=1e-3)


@settings(max_examples=60, deadline=None)
@given(
    score=st.floats(-2, 8),
    local=st.floats(-6, 6),
    kind=st.sampled_from(KINDS),
    gain=st.floats(0, 100),
    a_max=st.floats(0, 10),
    region_max=st.floats(-2, 6),
)
def test_a_moved_row_stays_inside_the_trust_region(
    detector: Any,
    score: float,
    local: float,
    kind: str,
    gain: float,
    a_max: float,
    region_max: float,
) -> None:
    both = Thresholds(steer=0.0, flag=100.0)
    guard = detector(thresholds=dict.fromkeys(Modality, both))
    guard.steering = replace(guard.steering, gain=gain, a_max=a_max, region_max=region_max)
    residual = at_steering_layer(guard, [local], [kind])
    before = float(local_scores(guard, residual, [kind]))
    decision = guard.decide(rows_scoring(guard, [score], [kind]), [kind])
    edit = guard.edit(decision, residual, [kind])
    after = float(local_scores(guard, residual.double() + edit.double(), [kind]))
    assert after >= before - 1e-5
    assert after <= max(region_max, before) + 1e-5
    assert float(edit.norm()) / guard.steering.gap <= a_max + 1e-5


def test_a_broken_residual_at_the_steering_layer_is_an_outage_only_if_steered(
    detector: Any,
) -> None:
    guard = detector()
    decision = guard.decide(rows_scoring(guard, [0.9, 0.9], ["text"] * 2), ["text"] * 2)
    residual = at_steering_layer(guard, [0.0, 0.0], ["text"] * 2)
    residual[0] = math.nan
    with pytest.raises(DetectorError, match="no finite residual"):
        guard.edit(decision, residual, ["text"] * 2)
    passed = dataclasses.replace(decision, actions=[Action.PASS, Action.STEER])
    edits = guard.edit(passed, residual, ["text"] * 2)
    assert not edits[0].any()
    assert edits[1].norm() > 0


def test_shadow_reports_what_would_be(detector: Any) -> None:
    rows_of = [0.2, 0.6, 1.2]
    for mode in ("enforce", "shadow"):
        guard = detector(mode=mode)
        decision = guard.decide(rows_scoring(guard, rows_of, ["text"] * 3), ["text"] * 3)
        verdicts = [guard.verdict(decision, row, "text") for row in range(3)]
        would = [Action.PASS, Action.STEER, Action.FLAG]
        assert [v.would_be for v in verdicts] == would
        assert [v.action for v in verdicts] == ([Action.PASS] * 3 if mode == "shadow" else would)
        assert {v.mode for v in verdicts} == {mode}


def test_a_verdict_says_everything_about_its_row(detector: Any, artefact: Artefact) -> None:
    guard = detector()
    decision = guard.decide(rows_scoring(guard, [0.2, 0.9], ["text", "images"]), ["text", "images"])
    verdict = guard.verdict(decision, 1, "images", 1.25)
    assert verdict.score == pytest.approx(0.9)
    assert (verdict.tau_steer, verdict.tau_flag) == (IMAGE.steer, IMAGE.flag)
    assert verdict.modality is Modality.IMAGE
    assert (verdict.layers, verdict.steering_layer) == ((1, 2), 2)
    assert verdict.artefact_id == artefact.artefact_id
    assert (verdict.strength, verdict.reason) == (1.25, "score")


def test_thresholds_follow_the_rates_of_the_policy(detector: Any, artefact: Artefact) -> None:
    scores = artefact.header.calibration[Modality.TEXT].scores
    guard = detector(thresholds={}, steer_rate=0.1, flag_rate=0.05)
    assert guard.thresholds_for("text") == Thresholds(steer=scores[179], flag=scores[189])
    assert guard.thresholds_for("image") == guard.thresholds_for("text")  # no images seen


def test_a_rate_beyond_the_calibration_data_is_refused(detector: Any) -> None:
    with pytest.raises(CalibrationError, match="need 999"):
        detector(thresholds={}, flag_rate=0.001)


def test_an_edit_may_lie_before_the_readout(detector: Any) -> None:
    """The model's side runs the layers between again; here it is the same arithmetic."""
    guard = detector()
    early = Detector(
        guard.readout,
        replace(guard.steering, layer=0),
        thresholds=guard.thresholds,
        policy=guard.policy,
        artefact_id=guard.artefact_id,
    )
    assert early.steering_layer == 0 < early.layers[-1]
