"""What is said and what comes beside it: one verdict, and no piece judged twice."""

from __future__ import annotations

import asyncio
import logging
from enum import Enum
from typing import Any

import pytest
from pydantic import BaseModel

from guardrail.errors import ConfigurationError, UnsupportedContentError
from guardrail.front.consequences import Reaction
from guardrail.front.judging import Heard, Judge, words_of
from guardrail.front.wrap import last_verdict
from guardrail.policy import Policy
from guardrail.testing import FakeGuard
from guardrail.types import Action


def user(words: str) -> dict[str, Any]:
    return {"role": "user", "content": words}


def heard(words: str, *beside: str) -> Heard:
    return Heard.of([user(words)], beside)


def judge(**policy: Any) -> tuple[Judge, FakeGuard]:
    guard = FakeGuard(policy=Policy(**policy))
    return Judge(Reaction(guard)), guard


def test_system_prompts_and_odd_names_come_beside_what_is_said():
    chat = [{"role": "system", "content": "be kind"}, user("hi") | {"name": "one two"}]
    found = Heard.of(chat, ["a tool"])
    assert found.said == chat[1:]
    assert [turn["content"] for [turn] in found.beside] == ["be kind", "one two", "a tool"]
    assert {turn["role"] for [turn] in found.beside} == {"user"}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_highest_verdict_counts(asynchronous):
    made, _ = judge()

    def verdict(*words: str) -> Any:
        if asynchronous:
            return asyncio.run(made.averdict(heard(*words)))
        return made.verdict(heard(*words))

    assert verdict("hi", "fine").action is Action.PASS
    assert verdict("hi", "odd").action is Action.STEER
    assert verdict("odd", "bad", "fine").action is Action.FLAG
    assert verdict("bad").action is Action.FLAG


def test_a_refused_outage_outranks_a_finding():
    made, _ = judge()
    assert made.verdict(heard("bad", "outage")).reason == "detector_failed"


def test_what_comes_beside_is_judged_once_and_what_is_said_each_time():
    made, guard = judge()
    for _ in range(3):
        made.verdict(heard("hi", "a tool", "another"))
    assert len(guard.seen) == 3 + 2


def test_an_outage_is_not_remembered():
    made, guard = judge()
    for _ in range(2):
        made.verdict(heard("hi", "outage"))
    assert len(guard.seen) == 4


def test_a_verdict_that_is_remembered_serves_one_call_that_says_the_same():
    made, guard = judge()
    first = made.verdict(heard("hi"))
    made.remember(heard("hi"), first)
    assert made.verdict(heard("hello")) == first
    assert made.verdict(heard("hi", "a tool")).action is Action.PASS
    assert len(guard.seen) == 3
    made.verdict(heard("hi"))
    assert len(guard.seen) == 4


class Read:
    def __init__(self, found: Heard | None) -> None:
        self.heard = found


async def test_nothing_to_judge_has_no_verdict():
    made, guard = judge()
    call, verdict = await made.aruled(lambda: Read(None))
    assert (call is not None, verdict, guard.seen) == (True, None, [])


@pytest.mark.parametrize("mode", ["enforce", "shadow"])
async def test_what_cannot_be_read_passes_in_shadow_mode_alone(mode, caplog):
    made, _ = judge(mode=mode)

    def read() -> Any:
        raise UnsupportedContentError("a sound")

    if mode == "enforce":
        with pytest.raises(UnsupportedContentError):
            await made.aruled(read)
        return
    with caplog.at_level(logging.WARNING):
        assert await made.aruled(read) == (None, None)
    assert "a sound" in caplog.text


def test_the_last_verdict_is_that_of_the_whole_call():
    made, _ = judge()
    made.settle(made.verdict(heard("hi", "odd")), lambda words: words)
    assert last_verdict().would_be is Action.STEER


class Kind(Enum):
    ONE = "a kind"


class Form(BaseModel):
    text: str = "words"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, ""),
        ({"n": [1, True, None]}, ""),
        ({"id": "c1", "signature": "x"}, ""),
        ({"id": "do this"}, '{"id": "do this"}'),
        ({"do this": 1}, '{"do this": 1}'),
        (["é", (Kind.ONE,)], '["é", ["a kind"]]'),
        (Form(), '{"text": "words"}'),
    ],
)
def test_words_are_what_a_model_may_be_shown(value, words):
    assert words_of(value) == words


def test_a_class_is_its_schema_and_a_frameworks_object_what_it_shows():
    assert '"properties": {"text"' in words_of(Form)
    assert words_of([object()], lambda value: "a tool" if type(value) is object else value)
    with pytest.raises(UnsupportedContentError, match="object"):
        words_of({"a": object()})


def test_a_reaction_that_says_nothing_is_an_error():
    with pytest.raises(ConfigurationError):
        Judge(Reaction(FakeGuard(), "sometimes"))
