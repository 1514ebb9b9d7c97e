from __future__ import annotations

import json
import math
import sqlite3
from statistics import median
from typing import TYPE_CHECKING, Any

import pytest
import torch

from guardrail.errors import ConfigurationError, DatasetError
from guardrail.evaluation.cache import FILENAME, Cache
from guardrail.evaluation.inputs import Troubles, read_inputs
from guardrail.evaluation.measuring import Context, Measuring
from guardrail.evaluation.run import evaluate
from guardrail.evaluation.schema import Report
from guardrail.evaluation.scores import Read, Reader, Scorer
from guardrail.guard import Guard
from guardrail.model.encode import Encoder
from guardrail.online.video_scan import judged_requests
from guardrail.policy import Limits, Policy, VideoSampling
from guardrail.types import READINGS

if TYPE_CHECKING:
    from collections.abc import Callable

    from guardrail.evaluation.items import EvalItem
    from tests.evaluation.conftest import Fitted


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of each call of the model, whoever makes it."""
    from transformers import PreTrainedModel

    seen: list[int] = []
    original = PreTrainedModel.__call__

    def counted(self: Any, *args: Any, **kwargs: Any) -> Any:
        tokens = kwargs.get("input_ids")
        seen.append(0 if tokens is None else len(tokens))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(PreTrainedModel, "__call__", counted)
    return seen


def group_of(report: Report, by: str, name: str) -> Any:
    (found,) = [g for g in report.groups if (g.by, g.name) == (by, name)]
    return found


def without_times(report: Report) -> dict[str, Any]:
    return report.model_dump(exclude={"timings", "created"})


def test_a_planted_guard_is_near_perfect_and_its_controls_are_not(guard, texts):
    report = evaluate(guard, texts, new_tokens=2)
    found = group_of(report, "modality", "text")
    assert found.separation.auroc.value > 0.97
    assert (found.n_harmful, found.n_harmless, found.against) == (14, 14, "itself")
    (control,) = report.controls
    assert abs(control.random_directions.mean - 0.5) < 0.3
    assert abs(control.permuted_labels.mean - 0.5) < 0.03
    assert control.permuted_labels.p_value == 1 / 1001
    assert control.guard == found.separation.auroc
    assert control.length_matched.auroc.value > 0.95
    assert abs(control.length_only.auroc.value - 0.5) < 0.3
    assert found.refusals["harmful"].guarded.rate > 0.8
    assert found.refusals["harmless"].guarded.rate < 0.2
    read = [point for point in report.layers if point.read]
    assert [p.layer for p in read] == list(guard.artefact.header.readout.layers)
    assert all(point.auroc["text"] > 0.9 for point in read)
    edited = [point.layer for point in report.layers if point.edited]
    assert edited == [guard.artefact.header.steering.layer]


@pytest.mark.parametrize("family", ["llama", "llava"])
def test_scores_and_actions_are_those_of_the_guards_own_check(
    fitted_of: Callable[[str], Fitted], texts, pictured, family
):
    items = texts if family == "llama" else [*texts[:6], *pictured]
    with fitted_of(family).guard() as guard:
        report = evaluate(guard, [_named(i, n) for n, i in enumerate(items)], answers=False)
        for row, item in zip(report.items, items, strict=True):
            verdict = guard.check(item.messages)
            assert row.score == pytest.approx(verdict.score, abs=1e-4)
            assert row.action == verdict.action.value
            assert row.modality == verdict.modality.value
            assert row.reading == verdict.where.reading
    found = [row for row in report.items if row.label == "harmful" and row.action != "pass"]
    for modality in {row.modality for row in found}:
        shares = group_of(report, "modality", modality).found_by
        readings = [row.reading for row in found if row.modality == modality]
        counted = {name: (readings.count(name), len(readings)) for name in READINGS}
        assert {name: (share.hits, share.n) for name, share in shares.items()} == counted


def _named(item: EvalItem, number: int) -> EvalItem:
    from dataclasses import replace

    return replace(item, id=f"item-{number}")


@pytest.mark.parametrize(
    ("reach", "allowed", "wanted"),
    [(-1e6, {"steer", "flag"}, "flag"), (-1e6, {"steer"}, "pass"), (1e6, {"steer"}, "steer")],
)
def test_an_edit_out_of_reach_is_counted_as_the_guard_counts_it(
    fitted_of: Callable[[str], Fitted], texts, reach, allowed, wanted
):
    fitted = fitted_of("llama")
    steering = fitted.artefact.header.steering.model_copy(update={"region_max": reach})
    artefact = fitted.artefact.revised(steering=steering)
    low = {"text": {"steer": -1e6, "flag": 1e6}}
    policy = Policy.model_validate({"actions": allowed, "thresholds": low})
    with Guard(fitted.loaded, artefact, policy=policy) as guard:
        report = evaluate(guard, texts[:3], answers=False)
        assert {row.action for row in report.items} == {wanted}
        assert {guard.check(item.messages).action.value for item in texts[:3]} == {wanted}


def test_a_second_run_asks_the_model_nothing_and_says_the_same(guard, texts, tmp_path, passes):
    first = evaluate(guard, texts, new_tokens=2, work_dir=tmp_path)
    assert passes
    passes.clear()
    second = evaluate(guard, texts, new_tokens=2, work_dir=tmp_path)
    assert passes == []
    assert without_times(first) == without_times(second)
    asked = {t.stage: (t.n, t.cached) for t in second.timings}
    assert asked["scores"] == asked["plain answers"] == asked["guarded answers"] == (28, 28)
    assert asked["divergence"][0] == asked["divergence"][1] > 0


def test_answers_follow_the_models_own_generation_config(guard, texts, tmp_path, monkeypatch):
    evaluate(guard, texts[:4], new_tokens=3, work_dir=tmp_path)
    monkeypatch.setattr(guard.loaded.model.generation_config, "repetition_penalty", 5.0)
    kept = evaluate(guard, texts[:4], new_tokens=3, work_dir=tmp_path)
    fresh = evaluate(guard, texts[:4], new_tokens=3)
    assert [row.plain_answer for row in kept.items] == [row.plain_answer for row in fresh.items]
    cached = {t.stage: t.cached for t in kept.timings}
    assert (cached["scores"], cached["plain answers"], cached["guarded answers"]) == (4, 0, 0)


def test_only_new_inputs_are_asked(guard, texts, tmp_path, passes):
    evaluate(guard, texts[:20], answers=False, work_dir=tmp_path)
    passes.clear()
    report = evaluate(guard, texts, answers=False, work_dir=tmp_path)
    assert sum(passes) <= 2 * 8  # the first batch may be read both ways
    (scores,) = [t for t in report.timings if t.stage == "scores"]
    assert (scores.n, scores.cached) == (28, 20)


def test_another_artefact_with_the_same_readouts_reuses_what_was_read_and_plain_answers(
    fitted_of: Callable[[str], Fitted], guard, texts, tmp_path
):
    evaluate(guard, texts[:8], new_tokens=2, work_dir=tmp_path)
    other = guard.artefact.revised(warnings=("another",))
    with Guard(guard.loaded, other) as second:
        report = evaluate(second, texts[:8], new_tokens=2, work_dir=tmp_path)
    cached = {t.stage: t.cached for t in report.timings}
    assert (cached["scores"], cached["plain answers"], cached["guarded answers"]) == (8, 8, 0)
    tensors = {**other.tensors, "readout_gap": 2 * other.tensors["readout_gap"]}
    with Guard(guard.loaded, other.revised(tensors=tensors)) as third:
        report = evaluate(third, texts[:8], answers=False, work_dir=tmp_path)
        alone = evaluate(third, texts[:8], answers=False)
    assert report.timings[1].cached == 0
    assert [row.score for row in report.items] == [row.score for row in alone.items]


def test_other_settings_and_policies_are_asked_anew(guard, texts, tmp_path):
    def cached(policy: Policy, tokens: int) -> dict[str, int]:
        with guard.with_policy(policy) as other:
            report = evaluate(other, texts[:4], new_tokens=tokens, work_dir=tmp_path)
        return {t.stage: t.cached for t in report.timings}

    cached(Policy(), 2)
    assert cached(Policy(), 3)["plain answers"] == 0
    found = cached(Policy(on_flag="annotate"), 3)
    assert (found["plain answers"], found["guarded answers"]) == (4, 0)


def test_nothing_is_written_without_a_work_folder(guard, texts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    evaluate(guard, texts[:4], new_tokens=1)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_interrupted_run_resumes(guard, texts, tmp_path, monkeypatch):
    def stop_after_two(stage: str, done: int, total: int) -> None:
        if stage == "scores" and done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(
            guard, texts, answers=False, batch_size=4, work_dir=tmp_path, progress=stop_after_two
        )
    report = evaluate(guard, texts, answers=False, batch_size=4, work_dir=tmp_path)
    (scores,) = [t for t in report.timings if t.stage == "scores"]
    assert scores.cached >= 8
    whole = evaluate(guard, texts, answers=False)
    assert [row.id for row in report.items] == [row.id for row in whole.items]
    for found, wanted in zip(report.items, whole.items, strict=True):
        assert found.score == pytest.approx(wanted.score, abs=1e-4)


def test_a_damaged_entry_is_read_again_with_a_warning(guard, texts, tmp_path, caplog):
    first = evaluate(guard, texts[:4], answers=False, work_dir=tmp_path)
    with sqlite3.connect(tmp_path / FILENAME) as file:
        file.execute("UPDATE entries SET value = substr(value, 1, length(value) - 1) || x'41'")
    file.close()
    second = evaluate(guard, texts[:4], answers=False, work_dir=tmp_path)
    assert without_times(first) == without_times(second)
    assert "damaged" in caplog.text
    (scores,) = [t for t in second.timings if t.stage == "scores"]
    assert scores.cached == 0


def test_the_report_survives_json(guard, texts):
    report = evaluate(guard, texts, new_tokens=2)
    text = report.model_dump_json()
    assert Report.model_validate_json(text) == report
    json.loads(text, parse_constant=lambda name: pytest.fail(name))


def test_pictures_are_measured_too_one_or_several(seeing_guard, pictured):
    report = evaluate(seeing_guard, pictured, new_tokens=2, batch_size=5)
    assert [row.modality for row in report.items] == ["image"] * 14
    assert report.items[0].image.endswith("0.png")
    assert [(g.by, g.name) for g in report.groups[:2]] == [
        ("modality", "image"),
        ("source", "pictured"),
    ]
    found = group_of(report, "modality", "image")
    assert found.separation.auroc.value > 0.9


def test_without_content_no_words_or_paths_are_in_the_report(guard, texts):
    text = evaluate(guard, texts[:6], new_tokens=2, content=False).model_dump_json()
    assert not any(item.text in text for item in texts[:6])
    assert '"text":null' in text


@pytest.mark.parametrize("labels", [("harmful",), ("harmless",)])
def test_one_label_alone_is_measured_without_a_separation(guard, texts, labels):
    report = evaluate(guard, [i for i in texts if i.label in labels], new_tokens=1)
    assert report.controls == ()
    assert all(g.separation is None for g in report.groups)
    assert set(report.groups[0].actions) == set(labels)
    assert any("no separation" in warning for warning in report.warnings)
    assert (report.quality is None) == (labels == ("harmful",))


def test_one_single_input_is_enough(guard, texts):
    report = evaluate(guard, texts[:1], new_tokens=1)
    assert len(report.items) == 1


def test_an_input_that_cannot_be_measured_is_an_error_naming_it_or_counted(guard, texts):
    from dataclasses import replace

    long = [{"role": "user", "content": "dog " * 3000}]
    items = [*texts[:5], replace(texts[5], id="too long", messages=long)]
    with pytest.raises(DatasetError, match=r"'too long' \(scores\).*prompt_tokens"):
        evaluate(guard, items, new_tokens=1)
    report = evaluate(guard, items, new_tokens=1, skip_errors=True)
    assert len(report.items) == report.data["n"] == 5
    assert list(report.data["skipped"]) == ["too long"]
    assert any("left out because of errors: 1 (too long)" in w for w in report.warnings)


def test_an_input_beyond_the_policys_limits_is_found_before_any_forward_pass(guard, texts, passes):
    strict = Policy(limits=Limits(text_chars=5))
    with (
        guard.with_policy(strict) as other,
        pytest.raises(DatasetError, match=r"reading.*text_chars"),
    ):
        evaluate(other, texts)
    assert passes == []


def test_when_nothing_can_be_measured_that_is_said(guard, texts):
    strict = Policy(limits=Limits(text_chars=5))
    with guard.with_policy(strict) as other, pytest.raises(DatasetError, match="none of 28 inputs"):
        evaluate(other, texts, skip_errors=True)


def test_shadow_mode_reports_what_would_have_been_done(guard, texts):
    enforced = evaluate(guard, texts, new_tokens=2)
    with guard.with_policy(Policy(mode="shadow")) as other:
        shadow = evaluate(other, texts, new_tokens=2)
    assert [r.action for r in shadow.items] == [r.action for r in enforced.items]
    assert any(row.action != "pass" for row in shadow.items)
    assert [r.guarded_answer for r in shadow.items] == [r.plain_answer for r in shadow.items]
    assert "flag" in {row.action for row in shadow.items}
    assert [r.guarded_refused for r in shadow.items] == [r.plain_refused for r in shadow.items]
    assert shadow.quality is None
    assert any("shadow mode" in warning for warning in shadow.warnings)


@pytest.mark.parametrize("answers", [True, False])
@pytest.mark.parametrize(("reach", "wanted"), [(-1e6, "flag"), (None, "pass"), (1e6, "steer")])
def test_shadow_mode_knows_what_no_edit_can_do(
    fitted_of: Callable[[str], Fitted], texts, reach, wanted, answers
):
    """`reach` None: an artefact that only detects."""
    fitted = fitted_of("llama")
    steering, tensors = None, fitted.artefact.tensors
    if reach is None:
        tensors = {k: v for k, v in tensors.items() if not k.startswith("steer_")}
    else:
        steering = fitted.artefact.header.steering.model_copy(update={"region_max": reach})
    artefact = fitted.artefact.revised(tensors=tensors, steering=steering)
    low = {"text": {"steer": -1e6, "flag": 1e6}}
    for mode in ("enforce", "shadow"):
        policy = Policy.model_validate({"mode": mode, "thresholds": low})
        with Guard(fitted.loaded, artefact, policy=policy) as guard:
            report = evaluate(guard, texts[:3], new_tokens=1, answers=answers)
        assert {row.action for row in report.items} == {wanted}


@pytest.mark.parametrize("on_flag", ["refuse", "raise", "annotate"])
def test_flagged_inputs_count_as_stopped_whatever_is_done_with_them(guard, texts, on_flag):
    policy = Policy.model_validate(
        {"on_flag": on_flag, "thresholds": {"text": {"steer": -1e6, "flag": -1e6}}}
    )
    with guard.with_policy(policy) as other:
        report = evaluate(other, texts[:6], new_tokens=2)
    assert {row.action for row in report.items} == {"flag"}
    assert all(row.guarded_refused for row in report.items)
    assert report.quality is None  # every harmless input is flagged: no answer of the model's


def test_quality_is_of_the_answered_harmless_inputs(guard, texts):
    policy = Policy.model_validate({"thresholds": {"text": {"steer": -1e6, "flag": 1e6}}})
    with guard.with_policy(policy) as other:
        steered = evaluate(other, texts, new_tokens=2).quality
    assert (steered.n, steered.n_steered, steered.n_passed_measured) == (14, 14, 0)
    assert steered.kl == pytest.approx(steered.kl_steered)
    assert steered.kl_passed_max is steered.exact_match_passed is None
    never = Policy.model_validate({"thresholds": {"text": {"steer": 1e6, "flag": 1e6}}})
    with guard.with_policy(never) as other:
        passed = evaluate(other, texts, new_tokens=2).quality
    assert (passed.n, passed.n_steered, passed.kl) == (14, 0, 0.0)
    assert passed.kl_passed_max == pytest.approx(0, abs=1e-9)
    assert passed.exact_match.rate == passed.length_ratio == 1
    assert steered.kl > 10 * passed.kl_passed_max


def test_repeated_and_contradictory_inputs_are_said(guard, texts):
    from dataclasses import replace

    again = replace(texts[0], id="again")
    opposite = replace(texts[1], id="opposite", label="harmful")
    report = evaluate(guard, [*texts, again, opposite], answers=False)
    assert any(w.startswith("inputs that repeat another one: 2;") for w in report.warnings)
    assert any(w == "inputs that stand there with both labels: 1" for w in report.warnings)
    scores = {row.id: row.score for row in report.items}
    assert scores["again"] == scores[texts[0].id]


def test_infinite_thresholds_can_be_reported(guard, texts):
    policy = Policy.model_validate({"thresholds": {"text": {"steer": 0.5, "flag": math.inf}}})
    with guard.with_policy(policy) as other:
        report = evaluate(other, texts[:4], answers=False)
    assert report.thresholds["text"]["flag"] > 1e300
    assert Report.model_validate_json(report.model_dump_json()) == report


def test_settings_that_cannot_hold_are_refused(guard, texts):
    with pytest.raises(ConfigurationError, match="new_tokens"):
        evaluate(guard, texts, new_tokens=0)
    with pytest.raises(ConfigurationError, match="batch_size"):
        evaluate(guard, texts, batch_size=0)
    with pytest.raises(DatasetError, match="no inputs"):
        evaluate(guard, [])
    with pytest.raises(DatasetError, match="one id"):
        evaluate(guard, [texts[0], texts[0]])


def test_the_fits_trials_become_the_strength_curve(guard, texts):
    report = evaluate(guard, texts[:4], answers=False)
    steering = guard.artefact.header.steering
    assert len(report.strength) == len(steering.figures["trials"])
    (chosen,) = [point for point in report.strength if point.chosen]
    assert (chosen.layer, chosen.tokens) == (steering.layer, steering.steer_tokens)
    assert chosen.induced.rate == pytest.approx(steering.induced_refusal.value)


def test_a_guard_on_an_artefact_that_only_detects(fitted_of: Callable[[str], Fitted], texts):
    fitted = fitted_of("llama")
    tensors = {k: v for k, v in fitted.artefact.tensors.items() if not k.startswith("steer_")}
    artefact = fitted.artefact.revised(tensors=tensors, steering=None)
    policy = Policy.model_validate({"thresholds": {"text": {"steer": -1e6, "flag": 1e6}}})
    with Guard(fitted.loaded, artefact, policy=policy) as guard:
        report = evaluate(guard, texts[:6], new_tokens=2)
    assert {row.action for row in report.items} == {"pass"}
    assert report.strength == ()
    assert report.quality.kl_passed_max == pytest.approx(0, abs=1e-9)


def test_the_judge_of_ones_own_decides(guard, texts):
    asked: list[tuple[str, str]] = []

    def everything(prompts: Any, answers: Any) -> list[bool]:
        asked.extend(zip(prompts, answers, strict=True))
        return [True] * len(answers)

    report = evaluate(guard, texts[:6], new_tokens=2, judge=everything)
    assert all(row.plain_refused and row.guarded_refused for row in report.items)
    assert report.judge.name.endswith("everything")
    assert report.judge.false_refusals.rate == 1
    assert report.judge.missed_refusals.rate == 0
    assert texts[0].text in {prompt for prompt, _ in asked}


def test_the_judge_is_not_asked_about_what_the_guard_flagged(guard, texts):
    asked: list[str] = []

    def nothing(prompts: Any, answers: Any) -> list[bool]:
        asked.extend(answers)
        return [False] * len(answers)

    middle = median(row.score for row in evaluate(guard, texts, new_tokens=1).items)
    thresholds = {"text": {"steer": middle, "flag": middle}}
    rules = {"thresholds": thresholds, "refusal_message": "flagged"}
    with guard.with_policy(Policy.model_validate(rules)) as other:
        report = evaluate(other, texts, new_tokens=1, judge=nothing)
    flagged = [row.action == "flag" for row in report.items]
    assert 0 < sum(flagged) < len(flagged)
    assert [row.guarded_refused for row in report.items] == flagged
    assert not any(row.plain_refused for row in report.items)
    assert "flagged" not in asked
    (judging,) = [t for t in report.timings if t.stage == "judging"]
    assert judging.n == 2 * len(flagged) - sum(flagged)


def test_layers_are_compared_among_inputs_of_as_many_pictures(seeing_guard, pictured):
    """The offset of a second picture is no merit of any direction, nor a fault."""
    from dataclasses import replace

    def twice(item: EvalItem) -> EvalItem:
        (message,) = item.messages
        more = {**message, "content": [message["content"][0], *message["content"]]}
        return replace(item, id=f"{item.id} twice", messages=[more])

    once = [item for item in pictured if len(item.images) == 1]
    mixed = [*once, *(twice(item) for item in once if item.harmful)]
    found = evaluate(seeing_guard, mixed, answers=False)
    wanted = evaluate(seeing_guard, once, answers=False)
    for one, other in zip(found.layers, wanted.layers, strict=True):
        assert one.auroc == pytest.approx(other.auroc)
    random = (report.controls[0].random_directions.aurocs for report in (found, wanted))
    assert next(random) == pytest.approx(next(random))
    apart = [twice(item) if item.harmful else item for item in once]
    nothing = evaluate(seeing_guard, apart, answers=False)
    assert all(point.auroc == {} for point in nothing.layers)
    assert "several" in nothing.controls[0].skipped["random_directions"]


def test_tools_are_part_of_an_input(guard, texts):
    from dataclasses import replace

    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    with_tools = replace(texts[0], id="with tools", tools=(tool,))
    report = evaluate(guard, [texts[0], with_tools, texts[1]], new_tokens=1)
    scores = {row.id: row.score for row in report.items}
    assert report.data["distinct"] == 3
    wanted = guard.check(texts[0].messages, tools=[tool]).score
    assert scores["with tools"] == pytest.approx(wanted, abs=1e-4)


def test_an_outage_of_the_detector_is_an_error_not_a_figure(guard, texts, monkeypatch):
    original = Scorer.__call__

    def broken(self: Any, read: Read, kind: str) -> Any:
        return original(self, Read(read.residuals * math.nan, read.found), kind)

    monkeypatch.setattr(Scorer, "__call__", broken)
    with pytest.raises(DatasetError, match="detector failed"):
        evaluate(guard, texts, answers=False)


def test_prompts_a_guard_may_have_been_fitted_on_are_said(guard, texts):
    from dataclasses import replace

    from guardrail.fit.dataset import packaged

    known = replace(texts[0], id="known", text=packaged()[0].text)
    report = evaluate(guard, [*texts[:3], known], answers=False)
    assert any(w.endswith("which guards are fitted on: 1") for w in report.warnings)


SAMPLED = VideoSampling(window=2, answer_frames=2)


def test_videos_are_measured_as_the_guard_judges_them(fitted_of: Callable[[str], Fitted], filmed):
    policy = Policy(video=SAMPLED)
    with fitted_of("llava").guard(policy) as guard:
        report = evaluate(guard, filmed, new_tokens=2)
        for row, item in zip(report.items, filmed, strict=True):
            verdict = guard.check(item.messages)
            assert (row.modality, row.action) == ("video", verdict.action.value)
            assert row.video == item.videos[0]
            assert row.image is None
            if verdict.action != "flag":  # the guard looks no further then
                assert row.score == pytest.approx(verdict.score, abs=1e-4)
    found = group_of(report, "modality", "video")
    assert (found.n_harmful, found.n_harmless) == (7, 7)
    assert found.refusals["harmful"].guarded.n == 7
    assert all(point.auroc.keys() == {"video"} for point in report.layers)
    (control,) = report.controls
    assert control.modality == "video"
    assert len(control.random_directions.aurocs) == 20
    assert any("video: the artefact has no calibration" in w for w in report.warnings)
    assert any("windows of 2 frames" in w for w in report.warnings)
    assert not any("differ by up to" in w for w in report.warnings)


def test_random_directions_of_long_videos_take_their_highest_window_too(
    fitted_of: Callable[[str], Fitted], filmed
):
    long = next(item for item in filmed if len(item.messages[0]["content"][0]["video"]) == 5)
    with fitted_of("llava").guard(Policy(video=SAMPLED)) as guard:
        scorer = Scorer(guard.artefact, guard.policy)
        read = Reader(guard.loaded, Encoder(guard.loaded), scorer.detector, batch_size=4)
        parts = [shown for shown, _ in judged_requests(long.request(guard.policy), 2)]
        assert len(parts) == 4
        alone = torch.stack([scorer(read([r], SAMPLED)[0], "video").random for r in parts])
        troubles = Troubles()
        inputs = read_inputs([long], guard.policy, troubles, lambda *_: None, guard.artefact)
        measuring_ = Measuring(guard, Context(Cache(), guard.policy, troubles, lambda *_: None), 4)
        (row,) = measuring_.rows(inputs)
    assert torch.allclose(row.scores.random, alone.amax(0), atol=1e-4)


def test_a_second_run_over_videos_asks_the_model_nothing(
    fitted_of: Callable[[str], Fitted], filmed, tmp_path, passes
):
    with fitted_of("llava").guard(Policy(video=SAMPLED)) as guard:
        first = evaluate(guard, filmed[:6], new_tokens=2, work_dir=tmp_path)
        passes.clear()
        second = evaluate(guard, filmed[:6], new_tokens=2, work_dir=tmp_path)
        assert passes == []
        assert without_times(first) == without_times(second)
    more = SAMPLED.model_copy(update={"answer_frames": 3})
    with fitted_of("llava").guard(Policy(video=more)) as guard:
        evaluate(guard, filmed[2:4], answers=False, work_dir=tmp_path)
    assert passes  # what is answered from other frames is another input


def test_the_divergence_of_a_steered_video_is_that_of_its_steered_answer(
    fitted_of: Callable[[str], Fitted], filmed
):
    """At these thresholds all are steered, but for those out of reach."""
    low = {"video": {"steer": -1e6, "flag": 1e6}}
    policy = Policy.model_validate({"thresholds": low, "video": SAMPLED.model_dump()})
    with fitted_of("llava").guard(policy) as guard:
        report = evaluate(guard, filmed[:8], new_tokens=2)
    assert report.quality is not None
    assert report.quality.n_steered + report.quality.n_flagged == 4
    assert report.quality.n_steered > 0
    assert report.quality.kl_steered > 0


def test_an_artefact_without_videos_cannot_measure_them(
    fitted_of: Callable[[str], Fitted], filmed, pictured
):
    fitted = fitted_of("llava")
    rows = {k: v for k, v in fitted.artefact.header.recentring.items() if k != "video"}
    old = fitted.artefact.revised(recentring=rows)
    with Guard(fitted.loaded, old) as guard:
        with pytest.raises(DatasetError, match=r"film-0.*fitted without video.*fit again"):
            evaluate(guard, [*pictured, *filmed], answers=False)
        report = evaluate(guard, [*pictured, *filmed], answers=False, skip_errors=True)
    assert len(report.items) == len(pictured)
    assert len(report.data["skipped"]) == len(filmed)
