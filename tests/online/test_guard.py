"""A guard's answers, verdicts, policies and life."""

from __future__ import annotations

import dataclasses
import gc
import logging
import weakref

import pytest
import torch

from guardrail.artefact import Artefact
from guardrail.errors import (
    ArtefactMismatchError,
    ConfigurationError,
    DetectorError,
    GuardClosedError,
    GuardrailViolation,
    LimitExceededError,
    RequestTimeoutError,
    UnsupportedContentError,
)
from guardrail.guard import Guard
from guardrail.model.decoder import decoder_layers
from guardrail.model.encode import Encoder
from guardrail.model.load import wrap_model
from guardrail.policy import REFUSAL, Limits, Policy, Thresholds
from guardrail.testing import tiny_model
from guardrail.types import Action, ImagePart, Load, Message, Modality, Request, TextPart
from guardrail.worker.worker import _WORKERS

PASS, STEER, FLAG = Action.PASS, Action.STEER, Action.FLAG


def request(text, *pictures):
    parts = (*(ImagePart(p) for p in pictures), TextPart(text))
    return Request((Message(role="user", parts=parts),))


def plain_answer(tiny, value, **options):
    """Text and tokens of the model's own `generate`, without any guard."""
    loaded = wrap_model(tiny.model, tiny.processor)
    encoded = Encoder(loaded).encode([value])
    ids = tiny.model.generate(**encoded.inputs, **({"max_new_tokens": 6} | options))
    new = ids[0, encoded.prompt_len :].tolist()
    return tiny.tokenizer.decode(new, skip_special_tokens=True), tuple(new)


def slow_score(tiny, artefact, value):
    """The formula of the score over a plain pass with all hidden states."""
    loaded = wrap_model(tiny.model, tiny.processor)
    encoded = Encoder(loaded).encode([value])
    with torch.no_grad():
        states = tiny.model(**encoded.inputs, output_hidden_states=True).hidden_states
    terms = []
    for k, layer in enumerate(artefact.header.readout.layers):
        h = states[layer + 1][0, -1].double()
        read = float(h @ artefact.tensors["readout_weight"][k].double())
        zero, gap = (float(artefact.tensors[f"readout_{n}"][k]) for n in ("zero", "gap"))
        terms.append((read - zero) / gap)
    score = sum(terms) / len(terms)
    if value.offset_kind == "text":
        return score
    line = artefact.header.recentring[value.offset_kind].score
    return (score - line.intercept) / line.slope


@pytest.mark.parametrize("number", [0, 1, 2])
def test_a_passed_request_gets_the_models_own_answer_and_the_right_score(
    tiny, guard_on, picture, number
):
    if tiny.family == "llama" and number:
        pytest.skip("this family reads text only")
    value = request("what is this?", *(picture(seed) for seed in range(number)))
    guard = guard_on(tiny)
    result = guard.generate(value, max_new_tokens=6)
    text, tokens = plain_answer(tiny, value)
    assert (result.text, result.token_ids) == (text, tokens)
    assert result.finish_reason == "length"
    assert result.completion_tokens == 6
    assert not result.refused_by_guard
    assert result.verdict.action is PASS
    assert result.verdict.modality is (Modality.IMAGE if number else Modality.TEXT)
    assert result.verdict.score == pytest.approx(slow_score(tiny, guard.artefact, value), abs=1e-4)
    checked = guard.check(value)
    assert checked.score == pytest.approx(result.verdict.score, abs=1e-4)
    assert dataclasses.replace(checked, score=0.0) == dataclasses.replace(result.verdict, score=0.0)


def test_a_chat_a_string_and_a_picture_are_all_understood(llava, guard_on, picture):
    guard = guard_on(llava)
    for value in ("hello", picture(), [{"role": "user", "content": "hello"}]):
        assert guard.generate(value, max_new_tokens=2).completion_tokens == 2
    with pytest.raises(UnsupportedContentError):
        guard.generate(42)


def test_sampled_and_beam_answers_equal_the_models_own(tiny, guard_on):
    guard, value = guard_on(tiny), request("tell me about the cat")
    torch.manual_seed(9)
    expected = plain_answer(tiny, value, do_sample=True, temperature=0.8)
    sampled = guard.generate(value, max_new_tokens=6, do_sample=True, temperature=0.8, seed=9)
    assert (sampled.text, sampled.token_ids) == expected
    beams = guard.generate(value, max_new_tokens=6, num_beams=3)
    assert (beams.text, beams.token_ids) == plain_answer(tiny, value, num_beams=3)


@pytest.mark.parametrize("steer_tokens", [0, 4])
def test_a_steered_request_is_answered_by_a_moved_model(tiny, guard_on, steer_tokens):
    value = request("tell me about the cat and the dog")
    result = guard_on(tiny, STEER, steer_tokens=steer_tokens).generate(value, max_new_tokens=6)
    assert result.verdict.action is STEER
    assert result.verdict.strength == pytest.approx(60.0, rel=1e-4)  # 30 gaps of 2
    assert result.verdict.steering_layer == 2
    assert result.token_ids != plain_answer(tiny, value)[1]
    assert result.finish_reason == "length"


def test_a_flagged_request_gets_the_refusal_message(tiny, guard_on):
    result = guard_on(tiny, FLAG).generate("tell me", max_new_tokens=6)
    assert result.text == REFUSAL
    assert result.refused_by_guard
    assert (result.finish_reason, result.token_ids) == ("flag", ())
    assert result.verdict.action is FLAG


def test_a_flagged_request_raises_if_the_policy_says_so_but_a_check_never_does(llava, guard_on):
    guard = guard_on(llava, FLAG, on_flag="raise")
    with pytest.raises(GuardrailViolation) as caught:
        guard.generate("tell me")
    assert caught.value.verdict.action is FLAG
    assert guard.check("tell me").action is FLAG


def test_an_annotated_request_is_answered_and_its_verdict_says_flag(llava, guard_on):
    result = guard_on(llava, FLAG, on_flag="annotate").generate("tell me", max_new_tokens=6)
    assert result.token_ids == plain_answer(llava, request("tell me"))[1]
    assert result.verdict.action is FLAG


def test_shadow_reports_and_changes_nothing(tiny, guard_on):
    for action in (STEER, FLAG):
        result = guard_on(tiny, action, mode="shadow").generate("tell me", max_new_tokens=6)
        assert result.token_ids == plain_answer(tiny, request("tell me"))[1]
        assert (result.verdict.action, result.verdict.would_be) == (PASS, action)
        assert result.verdict.strength == 0.0


def test_what_a_detect_only_artefact_cannot_steer_is_flagged_or_passed(llava, guard_on):
    for unsteerable, action in {"flag": FLAG, "pass": PASS, "caution": PASS}.items():
        guard = guard_on(llava, STEER, steering=False, unsteerable=unsteerable)
        verdicts = guard.check("tell me"), guard.generate("tell me", max_new_tokens=2).verdict
        assert [v.action for v in verdicts] == [action, action]
        assert verdicts[0].would_be is (FLAG if action is FLAG else STEER)


def broken(monkeypatch, guard):
    def fail(*_):
        raise RuntimeError("no detector today")

    monkeypatch.setattr(guard._engine._detector, "decide", fail)


def test_a_failing_detector_refuses_when_closed_and_passes_when_open(
    llava, guard_on, monkeypatch, caplog
):
    closed, opened = guard_on(llava), guard_on(llava, fail="open")
    for guard in (closed, opened):
        broken(monkeypatch, guard)
    refused = closed.generate("tell me", max_new_tokens=6)
    assert (refused.text, refused.refused_by_guard) == (REFUSAL, True)
    passed = opened.generate("tell me", max_new_tokens=6)
    assert passed.token_ids == plain_answer(llava, request("tell me"))[1]
    for verdict, action in ((refused.verdict, FLAG), (passed.verdict, PASS)):
        assert (verdict.score, verdict.reason) == (None, "detector_failed")
        assert verdict.action is action
    assert closed.check("tell me").action is FLAG
    assert "the detector failed" in caplog.text


def test_an_outage_is_no_violation(llava, guard_on, monkeypatch):
    guard = guard_on(llava, on_flag="raise")
    broken(monkeypatch, guard)
    with pytest.raises(DetectorError, match="fails closed"):
        guard.generate("tell me")


def test_an_outage_refuses_even_where_flags_are_annotated(llava, guard_on, monkeypatch):
    guard = guard_on(llava, on_flag="annotate")
    broken(monkeypatch, guard)
    result = guard.generate("tell me")
    assert (result.text, result.refused_by_guard) == (REFUSAL, True)
    assert result.verdict.reason == "detector_failed"


def test_what_no_edit_can_reach_is_flagged_and_its_verdict_says_so(llava, artefact_of, forcing):
    artefact = artefact_of(llava)
    near = artefact.header.steering.model_copy(update={"region_max": -1e9})
    model = (llava.model, llava.processor)
    with Guard(model, artefact.revised(steering=near), policy=forcing(STEER)) as guard:
        result, checked = guard.generate("tell me"), guard.check("tell me")
    assert (result.text, result.refused_by_guard) == (REFUSAL, True)
    for verdict in (result.verdict, checked):
        assert (verdict.action, verdict.would_be, verdict.strength) == (FLAG, FLAG, 0.0)
        assert verdict.reason == "score"


def test_an_outage_without_any_decision_is_raised_and_audited(llava, guard_on, monkeypatch):
    lines = []
    guard = guard_on(llava, audit=lambda verdict, facts: lines.append((verdict, facts)))
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for ask in (guard.generate, guard.check):
        with pytest.raises(DetectorError, match="never saw"):
            ask("tell me")
    assert len(guard.batch(["tell me"] * 3, return_exceptions=True)) == 3
    assert [(verdict, facts["event"]) for verdict, facts in lines] == [(None, "outage")] * 5
    assert len({facts["request_id"] for _, facts in lines}) == 5


def test_an_outage_in_shadow_changes_nothing(llava, guard_on, monkeypatch):
    guard = guard_on(llava, mode="shadow")
    broken(monkeypatch, guard)
    result = guard.generate("tell me", max_new_tokens=6)
    assert result.token_ids == plain_answer(llava, request("tell me"))[1]
    assert (result.verdict.action, result.verdict.would_be) == (PASS, FLAG)


def test_a_batch_keeps_its_order_and_each_answer_is_the_lone_one(tiny, guard_on, picture):
    guard = guard_on(tiny, limits=Limits(queue=2, batch=3, batch_wait_s=0.05))
    values = [request(f"tell me about the dog {'and the cat ' * n}") for n in range(5)]
    if tiny.family != "llama":
        values[1] = request("what is this picture?", picture())
    results = guard.batch(values, max_new_tokens=6)
    checks = guard.check_batch(values)
    for value, result, verdict in zip(values, results, checks, strict=True):
        assert result.token_ids == plain_answer(tiny, value)[1]
        assert result.verdict.score == pytest.approx(guard.check(value).score, abs=1e-4)
        assert verdict.score == pytest.approx(result.verdict.score, abs=1e-4)


def test_only_the_rows_above_a_threshold_are_touched(llava, guard_on, forcing):
    values = [request(f"tell me about the dog {'and the cat ' * n}") for n in range(4)]
    guard = guard_on(llava)
    scores = [verdict.score for verdict in guard.check_batch(values)]
    low, mid, high = (sorted(scores)[n : n + 2] for n in range(3))
    limits = Limits(batch=4, batch_wait_s=0.2)
    between = Thresholds(steer=sum(mid) / 2, flag=sum(high) / 2)
    both = dict.fromkeys((Modality.TEXT, Modality.IMAGE), between)
    mixed = guard.with_policy(Policy(thresholds=both, limits=limits))
    ranks = [sorted(scores).index(score) for score in scores]
    results = mixed.batch(values, max_new_tokens=6)
    for value, rank, result in zip(values, ranks, results, strict=True):
        assert result.verdict.action is (PASS, PASS, STEER, FLAG)[rank]
        if rank < 2:
            assert result.token_ids == plain_answer(llava, value)[1]
        alone = mixed.generate(value, max_new_tokens=6)
        assert (alone.text, alone.token_ids) == (result.text, result.token_ids)
    assert low[0] < low[1]
    mixed.close()


def test_one_bad_request_of_a_batch_does_not_spoil_the_others(llama, guard_on, picture):
    guard = guard_on(llama, limits=Limits(batch=4, batch_wait_s=0.05, prompt_tokens=60))
    values = ["hello", picture(), "tell me", "cat " * 80, 42]
    results = guard.batch(values, max_new_tokens=2, return_exceptions=True)
    assert [type(r).__name__ for r in results] == [
        "Result",
        "UnsupportedContentError",
        "Result",
        "LimitExceededError",
        "UnsupportedContentError",
    ]
    with pytest.raises(UnsupportedContentError):
        guard.batch(values, max_new_tokens=2)
    assert guard.generate("hello", max_new_tokens=2).completion_tokens == 2


def test_too_long_prompts_and_answers_are_refused_before_the_model_runs(llava, guard_on):
    guard = guard_on(llava, limits=Limits(prompt_tokens=20, new_tokens=8))
    with pytest.raises(LimitExceededError, match="prompt_tokens"):
        guard.check("cat " * 40)
    with pytest.raises(LimitExceededError, match="new_tokens"):
        guard.generate("hello", max_new_tokens=9)
    wide = guard_on(llava)
    with pytest.raises(LimitExceededError) as caught:
        wide.generate("z" * 2500)
    assert caught.value.allowed == 2047


def test_an_answer_ends_where_the_models_context_ends(llama, guard_on):
    guard = guard_on(llama)
    overhead = guard.generate("", max_new_tokens=1).prompt_tokens
    result = guard.generate("z" * (2045 - overhead), max_new_tokens=10)
    assert (result.prompt_tokens, result.completion_tokens) == (2045, 3)
    assert result.finish_reason == "length"


def test_an_answer_of_no_given_length_keeps_to_the_policys(llava, guard_on):
    result = guard_on(llava, limits=Limits(new_tokens=4)).generate("tell me about the cat")
    assert 0 < result.completion_tokens <= 4


def test_stop_strings_end_the_answer_and_are_not_part_of_it(llava, guard_on):
    guard = guard_on(llava)
    whole = guard.generate("tell me", max_new_tokens=12)
    stop = whole.text[4:6]
    cut = guard.generate("tell me", max_new_tokens=12, stop=[stop])
    assert cut.text == whole.text[: whole.text.index(stop)]
    assert cut.finish_reason == "stop"
    assert cut.completion_tokens < 12


def test_settings_that_cannot_hold_are_named(llava, guard_on):
    guard = guard_on(llava)
    for wrong in ({"temperature": -1}, {"past_key_values": None}, {"max_new_tokens": 0}):
        with pytest.raises(ConfigurationError, match=next(iter(wrong))):
            guard.generate("hello", **wrong)
    with pytest.raises(ConfigurationError, match="timeout"):
        guard.check("hello", timeout=0)


def test_every_verdict_is_audited_once_with_its_request(llava, guard_on):
    lines = []
    guard = guard_on(llava, FLAG, audit=lambda verdict, facts: lines.append((verdict, facts)))
    result = guard.generate("tell me")
    verdict = guard.check("tell me")
    assert [line[0] for line in lines] == [result.verdict, result.verdict, verdict]
    assert [line[1]["event"] for line in lines] == ["verdict", "answer", "verdict"]
    first, second, third = (line[1]["request_id"] for line in lines)
    assert first == second != third


def test_a_record_says_whose_request_it_was_and_how_long_each_part_took(
    llava, guard_on, slow_layers
):
    lines = []
    guard = guard_on(llava, audit=lambda _, facts: lines.append(facts))
    slow_layers(llava.model, 0.01)
    result = guard.generate("tell me", max_new_tokens=3, request_id="r1", client="a")
    guard.check("tell me", request_id="r2")
    judged, answered, checked = lines
    assert [line["request_id"] for line in lines] == ["r1", "r1", "r2"]
    assert 0 <= judged["queue_s"]
    assert judged["verdict_s"] >= 0.01
    assert checked["verdict_s"] >= 0.01
    assert answered["total_s"] >= answered["queue_s"] + answered["verdict_s"] + 0.02
    counts = (answered["finish_reason"], answered["completion_tokens"], answered["prompt_tokens"])
    assert counts == (result.finish_reason, 3, result.prompt_tokens)
    kept = ("request_id", "queue_s", "verdict_s")
    assert {name: answered[name] for name in kept} == {name: result.metadata[name] for name in kept}


def test_a_lists_requests_have_ids_of_their_own(llava, guard_on):
    ids = []
    guard = guard_on(llava, audit=lambda _, facts: ids.append(facts["request_id"]))
    guard.check_batch(["tell me", "hello"], request_id="r")
    assert sorted(ids) == ["r-0", "r-1"]
    with pytest.raises(ConfigurationError, match="`request_id` is a text"):
        guard.check("hello", request_id="x" * 300)
    with pytest.raises(TypeError, match="max_new_tokens"):
        guard.check("hello", max_new_tokens=3)


def test_an_answer_that_nobody_waits_for_any_more_is_on_record_as_that(
    llava, guard_on, slow_layers
):
    lines = []
    guard = guard_on(llava, audit=lambda _, facts: lines.append(facts))
    slow_layers(llava.model, 0.01)
    stream = guard.stream("tell me", max_new_tokens=300)
    next(stream)
    stream.close()
    guard.check("tell me")  # the model is free again
    ended = next(facts for facts in lines if facts["event"] == "answer")
    assert ended["finish_reason"] == "cancelled"
    assert 0 < ended["completion_tokens"] < 300


def test_a_guard_says_how_busy_its_model_is(llava, guard_on, slow_layers):
    guard = guard_on(llava, limits=Limits(queue=5, batch=1))
    assert guard.load == Load(waiting=0, running=0, places=5)
    slow_layers(llava.model, 0.01)
    streams = [guard.stream("tell me", max_new_tokens=300) for _ in range(3)]
    next(streams[0])
    assert guard.load == Load(waiting=2, running=1, places=5)
    for stream in streams:
        stream.close()


def test_an_audit_sink_that_raises_changes_no_answer_but_is_logged(llava, guard_on, caplog):
    def full(verdict, facts):
        raise OSError("disk full")

    result = guard_on(llava, audit=full).generate("tell me", max_new_tokens=6)
    assert result.token_ids == plain_answer(llava, request("tell me"))[1]
    assert "the audit sink failed" in caplog.text


def test_another_models_artefact_is_refused_unless_allowed_and_that_is_audited(
    llava, artefact_of, forcing
):
    model, processor = tiny_model("llava", seed=1)
    other = llava._replace(model=model, processor=processor)
    artefact = artefact_of(llava)
    with pytest.raises(ArtefactMismatchError, match="weights_digest"):
        Guard((other.model, other.processor), artefact, policy=forcing(PASS))
    assert not decoder_layers(model)[1]._forward_hooks
    lines = []
    with Guard(
        (other.model, other.processor),
        artefact,
        policy=forcing(PASS),
        allow_mismatch=True,
        audit=lambda verdict, facts: lines.append((verdict, facts)),
    ) as guard:
        assert guard.check("hello").action is PASS
    assert lines[0][0] is None
    assert lines[0][1]["event"] == "mismatch_allowed"
    assert "weights_digest" in lines[0][1]["fields"]


def test_an_allowed_mismatch_is_logged_without_an_audit_sink(llava, artefact_of, forcing, caplog):
    model, processor = tiny_model("llava", seed=1)
    Guard((model, processor), artefact_of(llava), policy=forcing(PASS), allow_mismatch=True).close()
    assert "weights_digest: fitted on" in caplog.text


def test_directions_of_another_shape_are_refused_whatever_is_allowed(llava, artefact_of, forcing):
    fitted = artefact_of(llava)
    longer = {
        name: torch.cat([fitted.tensors[name], fitted.tensors[name][-1:]])
        for name in ("direction", "mu_safe", "mu_unsafe")
    }
    artefact = fitted.revised(tensors=fitted.tensors | longer)
    with pytest.raises(ArtefactMismatchError, match="layer_count: fitted on 5, running 4"):
        Guard((llava.model, llava.processor), artefact, policy=forcing(PASS), allow_mismatch=True)


def test_another_precision_is_a_warning(llava, artefact_of, forcing):
    artefact = artefact_of(llava)
    changed = artefact.header.fingerprint.model_copy(update={"dtype": "bfloat16"})
    half = artefact.revised(fingerprint=changed)
    with pytest.warns(UserWarning, match=r"dtype bfloat16, this is"):
        Guard((llava.model, llava.processor), half, policy=forcing(PASS)).close()


def test_an_artefact_is_read_from_its_file(llava, artefact_of, forcing, tmp_path):
    path = artefact_of(llava).save(tmp_path / "tiny.guard.safetensors")
    with Guard((llava.model, llava.processor), path, policy=forcing(PASS)) as guard:
        assert guard.artefact.artefact_id == Artefact.load(path).artefact_id


def test_a_guard_is_loaded_from_a_folder(llava, artefact_of, forcing, tmp_path):
    llava.model.save_pretrained(tmp_path)
    llava.processor.save_pretrained(tmp_path)
    artefact = artefact_of(llava)
    policy = forcing(PASS)
    with Guard.from_pretrained(tmp_path, artefact, policy=policy, device="cpu") as guard:
        assert guard.generate("tell me", max_new_tokens=3).completion_tokens == 3


def test_a_guard_with_another_policy_shares_model_artefact_and_queue(llava, guard_on, forcing):
    guard = guard_on(llava)
    strict = guard.with_policy(forcing(FLAG))
    assert strict.loaded is guard.loaded
    assert strict.artefact is guard.artefact
    assert guard.check("tell me").action is PASS
    assert strict.check("tell me").action is FLAG
    strict.close()
    assert guard.check("tell me").action is PASS


def test_a_closed_guard_takes_nothing_and_leaves_no_hook(llava, guard_on):
    hooks = [len(layer._forward_hooks) for layer in decoder_layers(llava.model)]
    guard, other = guard_on(llava), guard_on(llava)
    assert guard.check("hello").action is PASS
    guard.close()
    guard.close()
    assert guard.closed
    with pytest.raises(GuardClosedError):
        guard.check("hello")
    assert other.check("hello").action is PASS
    other.close()
    assert [len(layer._forward_hooks) for layer in decoder_layers(llava.model)] == hooks
    assert llava.model not in _WORKERS


def test_a_forgotten_guard_takes_its_hooks_and_thread_with_it(llava, artefact_of, forcing):
    hooks = [len(layer._forward_hooks) for layer in decoder_layers(llava.model)]
    guard = Guard((llava.model, llava.processor), artefact_of(llava), policy=forcing(PASS))
    guard.check("hello")
    gone = weakref.ref(guard)
    del guard
    gc.collect()
    assert gone() is None
    assert [len(layer._forward_hooks) for layer in decoder_layers(llava.model)] == hooks
    assert llava.model not in _WORKERS


def test_a_timeout_ends_the_request_and_the_next_one_is_right(llava, guard_on, slow_layers):
    guard = guard_on(llava)
    with pytest.MonkeyPatch.context():
        slow_layers(llava.model, 0.02)
        with pytest.raises(RequestTimeoutError):
            guard.generate("tell me", max_new_tokens=200, timeout=0.15)
        result = guard.generate("tell me", max_new_tokens=6)
    assert result.token_ids == plain_answer(llava, request("tell me"))[1]


def test_an_error_inside_the_model_reaches_the_caller_and_leaves_nothing(llava, guard_on, caplog):
    caplog.set_level(logging.CRITICAL)
    guard = guard_on(llava, STEER)

    def fail(*_):
        raise RuntimeError("out of memory")

    handle = decoder_layers(llava.model)[3].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        guard.generate("tell me")
    handle.remove()
    calm = guard.with_policy(Policy(thresholds=guard.policy.thresholds, mode="shadow"))
    result = calm.generate("tell me", max_new_tokens=6)
    assert result.token_ids == plain_answer(llava, request("tell me"))[1]
    calm.close()


def test_an_answer_that_the_model_fails_under_is_on_record_as_that(llava, guard_on, caplog):
    caplog.set_level(logging.CRITICAL)
    lines = []
    limits = Limits(batch=2, batch_wait_s=0.3)
    guard = guard_on(llava, limits=limits, audit=lambda _, facts: lines.append(facts))

    def fail(_module, args):
        if args[0].shape[1] == 1:
            raise RuntimeError("no memory")

    handle = decoder_layers(llava.model)[3].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="no memory"):
        guard.generate("tell me", max_new_tokens=6, request_id="lone")
    with pytest.raises(RuntimeError, match="no memory"):
        list(guard.stream("tell me", max_new_tokens=6, request_id="stream"))
    texts = ["tell me", "what is this"]
    guard.batch(texts, max_new_tokens=6, request_id="list", return_exceptions=True)
    handle.remove()
    found = [(facts["request_id"], facts["event"]) for facts in lines]
    names = ("lone", "stream", "list-0", "list-1")
    assert sorted(found) == sorted((n, e) for n in names for e in ("verdict", "answer"))
    assert [f["finish_reason"] for f in lines if f["event"] == "answer"] == ["error"] * 4


def test_a_batch_that_fails_late_is_answered_one_by_one_and_audited_once(llava, guard_on, caplog):
    lines = []
    guard = guard_on(
        llava,
        limits=Limits(batch=2, batch_wait_s=0.3),
        audit=lambda verdict, facts: lines.append((facts["event"], facts["request_id"])),
    )

    def fail(_module, args):
        if args[0].shape[:2] == (2, 1):
            raise RuntimeError("no memory for two")

    handle = decoder_layers(llava.model)[3].register_forward_pre_hook(fail)
    results = guard.batch(["tell me", "what is this"], max_new_tokens=6)
    handle.remove()
    expected = [plain_answer(llava, request(text))[1] for text in ("tell me", "what is this")]
    assert [result.token_ids for result in results] == expected
    assert len(lines) == len(set(lines)) == 4
    assert sorted(event for event, _ in lines) == ["answer", "answer", "verdict", "verdict"]
    assert "running its requests alone" in caplog.text
