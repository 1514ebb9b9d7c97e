"""Answers judged while they are said, against a plain forward pass over prompt and answer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from pydantic import ValidationError

from guardrail import Guard, Policy
from guardrail.artefact.header import Answers, Windows
from guardrail.decide.answers import Heard, answer_verdict
from guardrail.decide.windows import WindowReadout
from guardrail.errors import ConfigurationError, DetectorError, GuardrailViolation
from guardrail.model.encode import Encoder
from guardrail.model.history import answered
from guardrail.model.load import wrap_model
from guardrail.types import Action, ImagePart, Message, Request, TextPart

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from guardrail.artefact import Artefact

LAYERS, HEADS, WIDTH, D = (1, 2), 2, 6, 32
FIRST = 3
ASKED = "Tell me about the sea."
TOKENS = 24


def readout(seed: int = 3) -> WindowReadout:
    draw = torch.Generator().manual_seed(seed)
    query, value = (torch.randn(2, HEADS, D, generator=draw) / 10 for _ in range(2))
    return WindowReadout(LAYERS, query, value, torch.zeros(2), width=WIDTH, first=FIRST)


def watching(artefact: Artefact, *, threshold: float = 0.0) -> Artefact:
    """The artefact with random windows over answers."""
    found = readout()
    windows = Windows(
        layers=LAYERS, heads=HEADS, width=WIDTH, first=FIRST, zero=found.zero, gap=found.gap
    )
    answers = Answers(
        windows=windows, scores=(), target=0.01, threshold=threshold, source="none", tokens=64
    )
    tensors = {
        "answer_query": found.query,
        "answer_value": found.value,
        "answer_bias": found.bias,
    }
    return artefact.revised(tensors={**artefact.tensors, **tensors}, answers=answers)


@pytest.fixture
def guarding(
    llava: Any, artefact_of: Callable[..., Artefact], forcing: Callable[..., Policy]
) -> Iterator[Callable[..., Guard]]:
    made: list[Guard] = []

    def make(tiny: Any = llava, action: Action = Action.PASS, **policy: Any) -> Guard:
        artefact = watching(artefact_of(tiny, steer_tokens=2))
        rules = forcing(action, **{"watch": "answer", "answer_threshold": math.inf, **policy})
        made.append(Guard((tiny.model, tiny.processor), artefact, policy=rules))
        return made[-1]

    yield make
    for guard in made:
        guard.close()


def slow_scores(guard: Guard, asked: Any, ids: tuple[int, ...]) -> list[float]:
    """Scores of the windows that end at each token but the last, from a pass over all of them."""
    from guardrail.inputs.messages import to_request

    encoded = guard._engine.encoder.encode([to_request(asked, policy=guard.policy)])
    loaded, prompt = guard.loaded, encoded.ids(0)
    whole = torch.tensor([[*prompt, *ids]])
    inputs = {**encoded.inputs, "input_ids": whole, "attention_mask": torch.ones_like(whole)}
    if "mm_token_type_ids" in inputs:
        inputs["mm_token_type_ids"] = torch.zeros_like(whole)
    with torch.no_grad():
        hidden = loaded.model(**inputs, output_hidden_states=True).hidden_states
    found = readout()
    rows = torch.stack(
        [found.products(layer, hidden[layer + 1][0, len(prompt) : -1]) for layer in LAYERS], dim=1
    )
    return found.scores(rows).tolist()


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "llama"])
def test_the_score_is_that_of_a_plain_pass_over_prompt_and_answer(guarding, tiny_of, family):
    guard = guarding(tiny_of(family))
    result = guard.generate(ASKED, max_new_tokens=TOKENS)
    expected = slow_scores(guard, ASKED, result.token_ids)
    assert result.answer.score == pytest.approx(max(expected), abs=1e-4)
    end = expected.index(max(expected)) + FIRST
    assert (result.answer.where.start, result.answer.where.stop) == (max(0, end - WIDTH), end)
    assert result.answer.reason == "answer"
    assert result.answer.action is Action.PASS


def test_watching_changes_no_token(guarding):
    plain = guarding(watch=None)
    watched = guarding()
    for asked in (ASKED, "Name a colour."):
        assert (
            watched.generate(asked, max_new_tokens=TOKENS).token_ids
            == plain.generate(asked, max_new_tokens=TOKENS).token_ids
        )


def test_rows_of_a_batch_are_judged_as_they_would_be_alone(guarding):
    guard = guarding(limits={"batch_wait_s": 0.2})
    asked = [ASKED, "Name a colour.", "Why is the sky blue in the morning?"]
    together = guard.batch(asked, max_new_tokens=TOKENS)
    for one, found in zip(asked, together, strict=True):
        alone = guard.generate(one, max_new_tokens=TOKENS).answer
        assert found.answer.score == pytest.approx(alone.score, abs=1e-4)


def threshold_within(guard: Guard) -> tuple[float, int]:
    """A threshold that a window in the midst of the answer is the first to exceed, and its end."""
    result = guard.generate(ASKED, max_new_tokens=TOKENS)
    scores = slow_scores(guard, ASKED, result.token_ids)
    highest = [max(scores[: i + 1]) for i in range(len(scores))]
    at = next(i for i in range(WIDTH + 3, len(scores)) if scores[i] > highest[i - 1])
    return (highest[at - 1] + scores[at]) / 2, at + FIRST


def test_a_stream_never_shows_a_token_of_the_window_that_is_cut(guarding):
    threshold, end = threshold_within(guarding())
    plain = guarding(watch=None).generate(ASKED, max_new_tokens=TOKENS)
    guard = guarding(answer_threshold=threshold)
    stream = guard.stream(ASKED, max_new_tokens=TOKENS)
    chunks = list(stream)
    result = stream.result
    tokenizer = guard.loaded.tokenizer
    allowed = tokenizer.decode(plain.token_ids[: end - WIDTH], skip_special_tokens=True)
    assert chunks[-1].strip() == guard.policy.refusal_message
    shown = "".join(chunks[:-1])
    assert shown
    assert allowed.startswith(shown)
    assert result.text == "".join(chunks)
    assert result.verdict.action is Action.FLAG
    assert result.verdict.reason == "answer"
    assert (result.verdict.where.start, result.verdict.where.stop) == (end - WIDTH, end)
    assert result.finish_reason == "flag"
    assert result.refused_by_guard
    assert result.token_ids == ()
    assert stream.verdict.action is Action.PASS  # of the prompt, told before the first word


def test_an_answer_that_nobody_streams_is_replaced_whole(guarding):
    threshold, end = threshold_within(guarding())
    result = guarding(answer_threshold=threshold).generate(ASKED, max_new_tokens=TOKENS)
    assert result.text == Policy().refusal_message
    assert result.completion_tokens == end
    assert result.answer == result.verdict


def test_under_raise_a_cut_answer_is_a_violation(guarding):
    threshold, _ = threshold_within(guarding())
    guard = guarding(answer_threshold=threshold, on_flag="raise")
    with pytest.raises(GuardrailViolation) as caught:
        guard.generate(ASKED, max_new_tokens=TOKENS)
    assert caught.value.verdict.reason == "answer"
    stream = guard.stream(ASKED, max_new_tokens=TOKENS)
    with pytest.raises(GuardrailViolation):
        list(stream)


@pytest.mark.parametrize("rules", [{"on_flag": "annotate"}, {"mode": "shadow"}])
def test_an_answer_that_is_not_to_be_cut_goes_on_and_its_verdict_says_so(guarding, rules):
    threshold, _ = threshold_within(guarding())
    plain = guarding(watch=None).generate(ASKED, max_new_tokens=TOKENS)
    result = guarding(answer_threshold=threshold, **rules).generate(ASKED, max_new_tokens=TOKENS)
    assert (result.text, result.token_ids) == (plain.text, plain.token_ids)
    assert result.answer.would_be is Action.FLAG
    assert not result.refused_by_guard
    annotated = rules.get("on_flag") == "annotate"
    assert result.verdict.action is (Action.FLAG if annotated else Action.PASS)


def test_streamed_and_waited_text_are_the_same_where_nothing_is_cut(guarding):
    guard = guarding()
    stream = guard.stream(ASKED, max_new_tokens=TOKENS)
    chunks = list(stream)
    assert "".join(chunks) == guard.generate(ASKED, max_new_tokens=TOKENS).text
    assert len(chunks) > 1


def test_a_prompt_that_is_flagged_has_no_answer_to_judge(guarding):
    result = guarding(action=Action.FLAG).generate(ASKED, max_new_tokens=TOKENS)
    assert result.answer is None
    assert result.verdict.reason == "score"


def test_steered_rows_are_watched_too(guarding):
    result = guarding(action=Action.STEER).generate(ASKED, max_new_tokens=TOKENS)
    assert result.verdict.action is Action.STEER
    assert math.isfinite(result.answer.score)


@pytest.mark.parametrize("fail", ["closed", "open"])
def test_an_outage_in_the_midst_of_an_answer_follows_the_fail_mode(guarding, monkeypatch, fail):
    from guardrail.decide.answers import Watching

    seen = []
    real = Watching.scores

    def breaks(self):
        seen.append(1)
        if len(seen) > WIDTH + 4:
            raise RuntimeError("no more")
        return real(self)

    guard = guarding(fail=fail)
    plain = guard.generate(ASKED, max_new_tokens=TOKENS)
    monkeypatch.setattr(Watching, "scores", breaks)
    result = guard.generate(ASKED, max_new_tokens=TOKENS)
    assert result.answer.reason == "detector_failed"
    if fail == "open":
        assert result.text == plain.text
    else:
        assert result.text == guard.policy.refusal_message
        seen.clear()
        raising = guarding(fail=fail, on_flag="raise")
        with pytest.raises(DetectorError):
            raising.generate(ASKED, max_new_tokens=TOKENS)


def test_an_answer_given_already_scores_as_while_it_is_said(guarding, tiny_of):
    guard = guarding(tiny_of("llama"))
    said = "The sea is very large, and it is full of fish of all kinds."
    ids = tuple(guard.loaded.tokenizer(said, add_special_tokens=False).input_ids)
    given = guard.check_answer(ASKED, said)
    scores = slow_scores(guard, ASKED, (*ids, ids[-1]))  # the last one is not read
    assert given.score == pytest.approx(max(scores), abs=1e-4)
    end = scores.index(max(scores)) + FIRST
    assert (given.where.start, given.where.stop) == (max(0, end - WIDTH), end)


def test_what_is_behind_the_window_of_a_given_answer_cannot_lower_its_score(guarding):
    guard = guarding()
    begun = "The sea is very large and it is full of fish of all kinds"
    first = guard.check_answer(ASKED, begun)
    longer = guard.check_answer(ASKED, f"{begun}. They swim, and some of them sing at night.")
    assert longer.score >= first.score - 1e-4


async def test_a_given_answer_too_short_for_a_window_has_no_score(guarding):
    guard = guarding()
    verdict = await guard.acheck_answer(ASKED, "No")
    assert verdict.score is None
    assert verdict.reason == "answer"
    assert verdict.action is Action.PASS


def test_a_given_answer_above_the_threshold_is_flagged(guarding):
    guard = guarding(answer_threshold=-1e9)
    verdict = guard.check_answer(
        [{"role": "user", "content": ASKED}], "The sea is very large and full of fish."
    )
    assert verdict.action is Action.FLAG
    assert guard.check(ASKED).action is Action.PASS


def test_an_answer_cannot_be_judged_where_the_policy_has_none_watched(guarding):
    guard = guarding(watch=None)
    with pytest.raises(ConfigurationError, match="watch"):
        guard.check_answer(ASKED, "The sea is very large.")


def test_a_beam_search_cannot_be_watched(guarding):
    with pytest.raises(ConfigurationError, match="beam"):
        guarding().generate(ASKED, num_beams=2)


def test_an_artefact_without_windows_over_answers_cannot_watch_them(guard_on, llava):
    with pytest.raises(ConfigurationError, match="fit --answers"):
        guard_on(llava, watch="answer")


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3", "llama"])
def test_given_answers_stand_behind_their_prompts_in_a_batch_as_alone(tiny_of, family, picture):
    tiny = tiny_of(family)
    encoder = Encoder(wrap_model(tiny.model, tiny.processor))
    pictures = [ImagePart(picture(1))] if encoder.reads_pictures else []
    chats = [
        Request(
            (
                Message(role="user", parts=(*pictures, TextPart(asked))),
                Message(role="assistant", parts=(TextPart(said),)),
            )
        )
        for asked, said in ((ASKED, "It is blue."), ("Hi", "Hello there, how are you today?"))
    ]
    found = answered(encoder, chats)
    for row, chat in enumerate(chats):
        prompt = encoder.encode([Request(chat.messages[:1])])
        said = encoder.controls.ids(chat.messages[1].parts[0].text)
        assert found.ids(row) == [*prompt.ids(0), *said]
        assert int(found.inputs["attention_mask"][row].sum()) == found.lengths[row]
        (turn,) = found.parts[row].turns
        assert (turn.start, turn.stop) == (prompt.lengths[0], found.lengths[row])


def test_what_a_template_would_cut_from_an_answer_is_judged(guarding, tiny_of):
    guard = guarding(tiny_of("llama"))
    template = guard.loaded.tokenizer.chat_template
    try:
        guard.loaded.tokenizer.chat_template = template.replace(
            "message['content']", "(message['content'] if message['role'] == 'user' else '')"
        )
        said = "The sea </think> is very large, and it is full of fish."
        assert guard.check_answer(ASKED, said).score is not None
    finally:
        guard.loaded.tokenizer.chat_template = template


@pytest.mark.parametrize(
    "rules",
    [
        {"answer_threshold": math.nan},
        {"answer_threshold": 1.0, "answer_rate": 0.1},
        {"watch": "answer", "actions": {"steer"}},
    ],
)
def test_rules_that_watch_nothing_are_refused(rules):
    with pytest.raises(ValidationError):
        Policy(**rules)


def test_an_outage_outweighs_what_was_found_unless_outages_pass(guarding):
    for fail, reason in (("closed", "detector_failed"), ("open", "answer")):
        detector = guarding(fail=fail, answer_threshold=0.0)._engine._detector
        asked = detector.verdict(None, 0, "text")
        heard = Heard(score=1.0, start=0, stop=4, failed=True)
        assert answer_verdict(detector, heard, asked, 1).reason == reason
