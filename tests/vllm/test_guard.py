"""`VllmGuard` against `Guard`: the same questions, answers, verdicts, errors and records."""

from __future__ import annotations

import asyncio
import json
import os
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from guardrail.artefact import Artefact
from guardrail.errors import (
    ConfigurationError,
    GuardClosedError,
    GuardrailViolation,
    LimitExceededError,
    RequestCancelledError,
    RequestTimeoutError,
    UnsupportedContentError,
)
from guardrail.guard import Guard
from guardrail.model.load import load_model
from guardrail.policy import Limits, Policy, Thresholds
from guardrail.types import Clip, Message, Modality, Request, TextPart, VideoPart
from tests.vllm.conftest import HERE, NEVER, QUIET, RUNNERS, run
from tests.vllm.said import TEXTS, chats, crowd, picture

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.vllm
OPTIONS = {"dtype": "float32", "max_model_len": 1024, "max_num_seqs": 4, "block_size": 32}
OPTIONS |= {"max_num_batched_tokens": 1024, "enforce_eager": True}


def clip(seed: int) -> Request:
    """A short video and a question."""
    frames = tuple(picture(seed + i) for i in range(4))
    parts = (VideoPart(Clip(frames, (0.0, 0.5, 1.0, 1.5))), TextPart(TEXTS[seed]))
    return Request((Message(role="user", parts=parts),))


class Both:
    """The same chats asked of both guards; the one in transformers is asked first."""

    def __init__(self, folder: Path, family: str, asked: list[Any], tokens: int = 8) -> None:
        self.family, self.asked = family, asked
        self.path = folder / f"{family}.guard.safetensors"
        loaded = load_model(str(folder / family))
        with self.plain(loaded, Policy(thresholds=points(NEVER, NEVER))) as guard:
            scores = sorted({round(found.score, 2) for found in guard.check_batch(self.asked)})
        third = len(scores) // 3
        steer, flag = (sum(scores[i - 1 : i + 1]) / 2 for i in (third, 2 * third))
        self.policy = Policy(thresholds=points(steer, flag))
        with self.plain(loaded, self.policy) as guard:
            self.answers = guard.batch(self.asked, max_new_tokens=tokens)
            self.checks = guard.check_batch(self.asked)
        self.told: list[tuple[Any, dict[str, Any]]] = []

    def plain(self, loaded: Any, policy: Policy) -> Guard:
        return Guard(loaded, self.path, policy=policy)

    def first(self, action: str) -> Any:
        """The first text whose verdict is this one."""
        return next(
            asked
            for asked, found in zip(self.asked, self.answers, strict=True)
            if found.verdict.action == action and found.verdict.modality == "text"
        )


def points(steer: float, flag: float) -> dict[Modality, Thresholds]:
    return dict.fromkeys(Modality, Thresholds(steer=steer, flag=flag))


@pytest.fixture(scope="module", params=["llama", "qwen2_5_vl", "smolvlm"])
def both(request: Any, models: Path) -> Iterator[tuple[Both, Any]]:
    os.environ.update(QUIET)

    from guardrail.vllm import VllmGuard

    disguised = [text.replace("e", "\u0435") for text in TEXTS]
    wanted = Both(models, request.param, [*chats(request.param != "llama"), *disguised])
    audit = lambda verdict, facts: wanted.told.append((verdict, dict(facts)))  # noqa: E731
    with VllmGuard(
        models / request.param, wanted.path, policy=wanted.policy, audit=audit, **OPTIONS
    ) as guard:
        yield wanted, guard


def expect_same(found: Any, wanted: Any, *, tied: bool = False) -> None:
    """`tied`: the request and its copy in plain letters score alike, and rounding says which."""
    assert (found.action, found.would_be) == (wanted.action, wanted.would_be)
    assert found.score == pytest.approx(wanted.score, rel=1e-4, abs=1e-3)
    assert found.strength == pytest.approx(wanted.strength, rel=1e-3, abs=1e-3)
    assert (found.modality, found.window) == (wanted.modality, wanted.window)
    assert tied or (found.folded, found.where) == (wanted.folded, wanted.where)


def test_answers_and_their_verdicts(both: Any) -> None:
    wanted, guard = both
    wanted.told.clear()
    found = guard.batch(wanted.asked, max_new_tokens=8)
    for one, other in zip(found, wanted.answers, strict=True):
        expect_same(one.verdict, other.verdict)
        assert one.text.rstrip("\ufffd") == other.text.rstrip("\ufffd")
        assert one.finish_reason == other.finish_reason
        assert one.refused_by_guard == other.refused_by_guard
        assert one.prompt_tokens == other.prompt_tokens
        assert one.token_ids == other.token_ids
    events = [facts["event"] for _, facts in wanted.told]
    assert events.count("verdict") == events.count("answer") == len(found)


def test_checks_and_what_is_written_in_other_letters(both: Any) -> None:
    wanted, guard = both
    found = guard.check_batch(wanted.asked)
    for one, other, answer in zip(found, wanted.checks, wanted.answers, strict=True):
        alike = one.score == pytest.approx(answer.verdict.score, rel=1e-4)
        expect_same(one, other, tied=alike and one.folded != other.folded)
    assert any(found.folded for found in wanted.checks)


def test_streams_are_the_answer_in_pieces_behind_the_verdict(both: Any) -> None:
    wanted, guard = both
    for asked, other in zip(wanted.asked, wanted.answers, strict=True):
        with guard.stream(asked, max_new_tokens=8) as stream:
            pieces = list(stream)
        assert "".join(pieces).rstrip("\ufffd") == other.text.rstrip("\ufffd")
        expect_same(stream.verdict, other.verdict)
        assert (len(pieces) == 1) or not other.refused_by_guard


def test_a_stop_string_ends_an_answer_before_it(both: Any) -> None:
    wanted, guard = both
    chat = wanted.first("pass")
    whole = guard.generate(chat, max_new_tokens=32).text
    middle = whole[len(whole) // 2 :][:3]
    stopped = guard.generate(chat, max_new_tokens=32, stop=[middle])
    assert stopped.text == whole[: whole.index(middle)]
    assert stopped.finish_reason == "stop"


def test_a_flag_raises_where_the_policy_says_so(both: Any) -> None:
    wanted, guard = both
    if guard.policy.on_flag == "refuse":
        with pytest.raises(ConfigurationError, match="on_flag"):
            guard.with_policy(guard.policy.model_copy(update={"on_flag": "raise"}))
    assert guard.generate(wanted.first("flag"), max_new_tokens=4).refused_by_guard


def test_requests_end_when_they_are_given_up_or_late(both: Any) -> None:
    wanted, guard = both
    chat = wanted.first("pass")
    with pytest.raises(RequestTimeoutError):
        guard.generate(chat, max_new_tokens=900, timeout=0.3)
    stream = guard.stream(chat, max_new_tokens=900)
    next(stream)
    stream.close()

    async def given_up() -> None:
        task = asyncio.create_task(guard.agenerate(chat, max_new_tokens=900))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(given_up())
    with pytest.raises(RequestCancelledError):
        stream._job.result()
    for _ in range(200):  # the engine is free again
        if guard.load.running == 0:
            break
        asyncio.run(asyncio.sleep(0.05))
    assert (guard.load.running, guard.load.waiting) == (0, 0)
    expect_same(guard.check(chat), guard.check(chat))


def test_what_is_too_long_is_refused_with_its_size(both: Any) -> None:
    _, guard = both
    with (
        guard.with_policy(
            guard.policy.model_copy(update={"limits": Limits(prompt_tokens=20)})
        ) as small,
        pytest.raises(LimitExceededError, match="20"),
    ):
        small.check("word " * 100)
    with pytest.raises(LimitExceededError, match="1024"):
        guard.generate("word " * 3000)


def test_control_tokens_in_a_text_stay_text(both: Any) -> None:
    _, guard = both
    tokenizer = guard._engine._host.tokenizer
    special = next(token for token in tokenizer.all_special_tokens if len(token) > 2)
    prompt = guard._engine.encoder.prompt(
        Request((Message(role="user", parts=(TextPart(f"a {special}{special}{special} b"),)),))
    )
    plain = guard._engine.encoder.prompt(Request((Message(role="user", parts=(TextPart("a b"),)),)))
    number = tokenizer.convert_tokens_to_ids(special)
    assert prompt.ids.count(number) == plain.ids.count(number)


def test_a_video_is_refused_where_no_threshold_holds_for_it(both: Any) -> None:
    _, guard = both
    with pytest.raises(UnsupportedContentError):
        guard.check(clip(1))


def test_other_rules_and_artefacts_are_refused_while_the_engine_runs(
    both: Any, tmp_path: Path
) -> None:
    from guardrail.vllm import VllmGuard

    wanted, guard = both
    for change in ({"mode": "shadow"}, {"thresholds": points(NEVER, NEVER)}):
        with pytest.raises(ConfigurationError, match=next(iter(change))):
            guard.with_policy(guard.policy.model_copy(update=change))
    fitted = Artefact.load(wanted.path)
    other = fitted.revised(extra={"note": "another"})
    with pytest.raises(ConfigurationError, match=other.artefact_id):
        VllmGuard(guard._engine._host, other, policy=guard.policy)


def test_a_guard_in_shadow_answers_what_it_would_flag_and_a_closed_one_nothing(
    models: Path,
) -> None:
    os.environ.update(QUIET)

    from guardrail.vllm import VllmGuard

    policy = Policy(thresholds=points(-NEVER, -NEVER), on_flag="raise")
    path = models / "llama.guard.safetensors"
    guard = VllmGuard(models / "llama", path, policy=policy, **OPTIONS)
    with pytest.raises(GuardrailViolation) as raised:
        guard.generate("what is this", max_new_tokens=4)
    assert raised.value.verdict.action == "flag"
    assert guard.check("what is this").action == "flag"
    guard.close()
    assert guard.trouble == "the guard is closed"
    with pytest.raises(GuardClosedError):
        guard.generate("what is this")


@pytest.mark.parametrize(
    ("family", "runner"),
    [("llama", "second, asynchronous"), ("qwen2_5_vl", "first")],
)
def test_five_hundred_requests_of_many_clients(family: str, runner: str, models: Path) -> None:
    wanted = Both(models, family, crowd(family != "llama"), tokens=6)
    case = {"policy": wanted.policy.model_dump(mode="json"), "many": 500}
    told = run(HERE / "crowd.py", models, family, json.dumps(case), **RUNNERS[runner])
    found = json.loads(told.splitlines()[-1])
    assert len(found) == 500
    heard = Counter()
    for one in found:
        answer, verdict = wanted.answers[one["chat"]], one["verdict"]
        heard[verdict["action"], one["kind"]] += 1
        assert verdict["action"] == answer.verdict.action
        assert verdict["score"] == pytest.approx(answer.verdict.score, rel=1e-3, abs=1e-3)
        if "text" in one:
            assert one["text"].rstrip("\ufffd") == answer.text.rstrip("\ufffd")
            assert (one["finish"] == "content_filter") == answer.refused_by_guard
            assert one.get("tokens") in (None, len(answer.token_ids))
        if "begun" in one:
            assert answer.text.startswith(one["begun"].rstrip("\ufffd"))
    assert len(heard) == 12  # each action, asked in each way
