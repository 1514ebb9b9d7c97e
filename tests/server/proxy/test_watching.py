"""What an upstream answers, judged before it is passed on: nothing of a flagged window shows."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest

from guardrail.errors import QueueFullError
from guardrail.policy import Policy
from guardrail.server.watching import (
    LONGEST,
    STEP,
    WINDOW,
    Spoken,
    WatchedStream,
    settled_answers,
)

PATH = "/v1/chat/completions"
BENIGN = "A harmless sentence about the sea. "
RULES = {"watch": "answer", "answer_threshold": 1.0}


@pytest.fixture
def watching(proxy_of, wire):
    """`watching(mode="shadow")`: a proxy that watches answers, and its guard."""

    def make(**rules: Any):
        guard = wire.WordGuard(Policy(**{**RULES, **rules}))
        return proxy_of(guard), guard

    return make


def chunks(wire, text: str, size: int = 10) -> list[bytes]:
    parts = [text[i : i + size] for i in range(0, len(text), size)]
    return [wire.told(wire.piece({"content": part})) for part in parts]


def words(events: list[Any]) -> str:
    choices = [c for e in events if e != "[DONE]" for c in e.get("choices", ())]
    return "".join(c["delta"].get("content") or "" for c in choices)


async def streamed(proxy, wire) -> tuple[str, list[Any]]:
    answer = await proxy.post(PATH, json={**wire.CHAT, "stream": True})
    return answer.text, wire.events(answer.content)


async def test_a_harmless_stream_is_passed_on_as_it_came(watching, upstream, wire):
    sent = [*chunks(wire, BENIGN * 30), *wire.LAST]
    upstream.streams(*sent)
    proxy, guard = watching()
    text, events = await streamed(proxy, wire)
    assert words(events) == BENIGN * 30
    assert b"".join(sent[1:-2]).decode() in text  # but for the verdict in the first and the last
    assert events[-1] == "[DONE]"
    assert len(guard.judged) > 3
    assert max(map(len, guard.judged)) <= STEP + WINDOW + 10


@pytest.mark.parametrize("before", [0, 4, 14, 25])
async def test_nothing_of_the_window_with_the_words_is_shown(watching, upstream, wire, before):
    said = f"{BENIGN * before}now comes an evil thing. {BENIGN * 20}"
    upstream.streams(*chunks(wire, said), *wire.LAST)
    proxy, guard = watching()
    text, events = await streamed(proxy, wire)
    assert "evil" not in text
    refusal = guard.policy.refusal_message
    shown = words(events).removesuffix(refusal).rstrip()
    assert said.startswith(shown)
    assert len(shown) <= max(0, said.index("evil") + len("evil") + 10 - WINDOW)
    last = events[-2]
    assert last["choices"][0]["finish_reason"] == "content_filter"
    assert last["choices"][0]["delta"]["refusal"] == refusal
    assert last["guardrail"]["reason"] == "answer"
    assert last["id"] == "c1"
    assert events[-1] == "[DONE]"


async def test_words_in_the_last_step_are_found_too(watching, upstream, wire):
    upstream.streams(*chunks(wire, f"{BENIGN}evil"), *wire.LAST)
    text, events = await streamed(watching()[0], wire)
    assert "evil" not in text
    assert "sea" not in text  # shorter than a window: nothing of it was told
    assert events[-1] == "[DONE]"


async def test_under_raise_the_stream_ends_in_an_error(watching, upstream, wire):
    upstream.streams(*chunks(wire, BENIGN * 20 + "evil"), *wire.LAST)
    text, events = await streamed(watching(on_flag="raise")[0], wire)
    assert "evil" not in text
    assert events[-1]["error"]["type"]
    assert "[DONE]" not in text


@pytest.mark.parametrize("rules", [{"mode": "shadow"}, {"on_flag": "annotate"}])
async def test_what_is_not_to_be_cut_goes_on(watching, upstream, wire, rules):
    upstream.streams(*chunks(wire, BENIGN + "evil"), *wire.LAST)
    proxy, guard = watching(**rules)
    _, events = await streamed(proxy, wire)
    assert words(events) == BENIGN + "evil"
    assert guard.judged


@pytest.mark.parametrize(("fail", "goes_on"), [("closed", False), ("open", True)])
async def test_an_outage_in_a_stream_follows_the_fail_mode(watching, upstream, wire, fail, goes_on):
    upstream.streams(*chunks(wire, BENIGN + "collapse"), *wire.LAST)
    _, events = await streamed(watching(fail=fail)[0], wire)
    assert (words(events) == BENIGN + "collapse") == goes_on
    assert not words(events) or goes_on
    assert (events[-1] == "[DONE]") == goes_on


async def test_a_stream_that_the_upstream_cuts_shows_nothing_unjudged(watching, upstream, wire):
    upstream.streams(*chunks(wire, BENIGN * 6 + "evil"), cut=True)
    text, events = await streamed(watching()[0], wire)
    assert "evil" not in text
    assert "error" in events[-1]


@pytest.mark.parametrize(
    ("path", "body", "answer"),
    [
        (
            PATH,
            {"model": "big", "messages": [{"role": "user", "content": "hello"}]},
            {"choices": [{"index": 0, "message": {"role": "assistant", "content": "%s"}}]},
        ),
        (
            PATH,
            {"model": "big", "messages": [{"role": "user", "content": "hello"}]},
            {"choices": [{"index": 0, "message": {"content": [{"type": "text", "text": "%s"}]}}]},
        ),
        ("/v1/completions", {"model": "big", "prompt": "hello"}, {"choices": [{"text": "%s"}]}),
        (
            "/v1/responses",
            {"model": "big", "input": "hello"},
            {
                "output": [
                    {"type": "reasoning", "summary": []},
                    {
                        "type": "message",
                        "role": "assistant",
                        "content": [{"type": "output_text", "text": "%s"}],
                    },
                ]
            },
        ),
    ],
)
async def test_whole_answers_of_each_form_are_judged(watching, upstream, path, body, answer):
    for said, shown in (("a fine day", True), ("an evil day", False)):
        upstream.says(json.loads(json.dumps(answer).replace("%s", said)))
        proxy, guard = watching()
        told = await proxy.post(path, json=body)
        assert told.status_code == 200
        assert guard.judged == [said]
        assert (said in told.text) == shown
        assert (guard.policy.refusal_message in told.text) != shown
        assert told.headers["x-guardrail-action"] == ("pass" if shown else "flag")


async def test_one_flagged_choice_of_several_refuses_them_all(watching, upstream, wire):
    choices = [
        {"index": i, "message": {"role": "assistant", "content": said}}
        for i, said in enumerate(("a fine day", "an evil day"))
    ]
    upstream.says({**wire.ANSWER, "choices": choices})
    told = await watching()[0].post(PATH, json=wire.CHAT)
    assert "day" not in told.text


async def test_choices_of_a_stream_are_judged_apart(watching, upstream, wire):
    def piece(index: int, text: str) -> bytes:
        data = wire.piece({"content": text})
        data["choices"][0]["index"] = index
        return wire.told(data)

    sent = [piece(i % 2, "ev" if i % 2 else "il") for i in range(8)]
    upstream.streams(*sent, *wire.LAST)
    text, events = await streamed(watching()[0], wire)
    assert events[-1] == "[DONE]"
    assert text.count('"il"') == 4  # neither choice has the word


async def test_a_streamed_response_that_is_cut_is_incomplete(watching, upstream, wire):
    def told(number: int, kind: str, **data: Any) -> bytes:
        return wire.told({"type": kind, "sequence_number": number, **data})

    at = {"output_index": 0, "content_index": 0}
    said = BENIGN * 12 + "evil" + BENIGN
    deltas = [
        told(i + 1, "response.output_text.delta", delta=said[i * 10 : i * 10 + 10], **at)
        for i in range(len(said) // 10 + 1)
    ]
    whole = told(999, "response.completed", response={"output": [], "status": "completed"})
    upstream.streams(told(0, "response.created", response={}), *deltas, whole)
    body = {"model": "big", "input": "hello", "stream": True}
    answer = await watching()[0].post("/v1/responses", json=body)
    events = wire.events(answer.content)
    assert "evil" not in answer.text
    assert events[-1]["type"] == "response.incomplete"
    assert events[-1]["response"]["incomplete_details"] == {"reason": "content_filter"}
    assert events[-1]["guardrail"]["reason"] == "answer"


async def test_without_watch_no_answer_is_judged(watching, upstream, wire):
    upstream.streams(*chunks(wire, "evil"), *wire.LAST)
    proxy, guard = watching(watch=None)
    text, _ = await streamed(proxy, wire)
    assert "evil" in text
    assert guard.judged == []


async def test_events_leave_in_order_and_late_by_a_window(wire):
    """Any cutting into events: what is out was judged with all that a window behind it holds."""
    rng = random.Random(7)
    for _ in range(20):
        guard = wire.WordGuard(Policy(**RULES))
        stream, out, fed = WatchedStream[int](guard, {}), [], 0
        sizes = [rng.randint(0, 90) for _ in range(40)]
        for number, size in enumerate(sizes):
            out += await stream.take(number, [Spoken("0", "x" * size)] if size else []) or []
            fed += size
            told = sum(sizes[: len(out)])
            assert told <= max(0, fed - WINDOW) or not any(sizes[: len(out)])
        out += await stream.end() or []
        assert out == list(range(40))


async def test_comments_say_nothing_again(watching, upstream, wire):
    said = ["One ", "two ", "three ", "four."]
    sent = [b for word in said for b in (*chunks(wire, word), b": keep-alive\n\n")]
    closing = wire.told(wire.piece({"content": " End."}, "stop"))
    upstream.streams(*sent, closing, wire.LAST[1])
    proxy, guard = watching()
    _, events = await streamed(proxy, wire)
    assert guard.judged == ["".join(said) + " End."]
    assert events[-1] == "[DONE]"


async def test_an_annotated_flag_is_told_in_the_last_event_and_beside_a_whole_answer(
    watching, upstream, wire
):
    upstream.streams(*chunks(wire, BENIGN + "evil"), *wire.LAST)
    proxy, _ = watching(on_flag="annotate")
    _, events = await streamed(proxy, wire)
    first, *_, last = [e for e in events if e != "[DONE]" and e.get("guardrail")]
    assert (first["guardrail"]["action"], last["guardrail"]["action"]) == ("pass", "flag")
    assert last["guardrail"]["reason"] == "answer"
    choice = {"index": 0, "message": {"role": "assistant", "content": "evil"}}
    upstream.says({**wire.ANSWER, "choices": [choice]})
    whole = await proxy.post(PATH, json=wire.CHAT)
    assert whole.json()["choices"] == [choice]
    assert whole.json()["guardrail"]["action"] == "flag"
    assert whole.headers["x-guardrail-action"] == "flag"


async def test_a_choice_that_has_ended_holds_no_other(wire):
    guard = wire.WordGuard(Policy(**RULES))
    stream = WatchedStream[str](guard, {})
    assert await stream.take("short", [Spoken("1", "All right.")]) == []
    assert await stream.take("end", [Spoken("1", "", done=True)]) == ["short", "end"]
    out = []
    for number in range(40):
        out += await stream.take(str(number), [Spoken("0", "x" * 20)]) or []
    assert len(out) > 20


async def test_words_that_come_whole_alone_are_judged_and_others_once(watching, upstream, wire):
    at = {"output_index": 0, "content_index": 0}

    def told(kind: str, **data: Any) -> bytes:
        return wire.told({"type": f"response.{kind}", "sequence_number": 1, **data})

    def stream(said: str, *, deltas: bool) -> list[bytes]:
        part = {"type": "output_text", "text": said}
        item = {"type": "message", "content": [part]}
        begun = [told("output_text.delta", delta=said, **at)] if deltas else []
        return [
            told("created", response={"output": []}),
            *begun,
            told("output_text.done", text=said, **at),
            told("content_part.done", part=part, **at),
            told("output_item.done", item=item, output_index=0),
            told("completed", response={"output": [item], "status": "completed"}),
        ]

    body = {"model": "big", "input": "hello", "stream": True}
    for deltas in (True, False):
        upstream.streams(*stream("a fine day", deltas=deltas))
        proxy, guard = watching()
        answer = await proxy.post("/v1/responses", json=body)
        assert guard.judged == ["a fine day"]
        assert wire.events(answer.content)[-1]["type"] == "response.completed"
        upstream.streams(*stream("an evil day", deltas=deltas))
        answer = await watching()[0].post("/v1/responses", json=body)
        assert "evil" not in answer.text
        assert wire.events(answer.content)[-1]["type"] == "response.incomplete"


async def test_a_cut_tells_nothing_else_of_the_event_it_ends_with(watching, upstream, wire):
    data = {**wire.piece({"content": "evil"}), "debug": "evil words"}
    upstream.streams(wire.told(data), *wire.LAST)
    text, events = await streamed(watching()[0], wire)
    assert "evil" not in text
    assert events[0].keys() >= {"id", "model", "choices", "guardrail"}


async def test_what_cannot_be_checked_stops_nothing_in_shadow_mode(
    watching, upstream, wire, monkeypatch
):
    async def full(*_: Any, **__: Any) -> Any:
        raise QueueFullError("full", retry_after_s=1.0)

    monkeypatch.setattr(wire.WordGuard, "acheck_answer", full)
    assert (await watching(mode="shadow")[0].post(PATH, json=wire.CHAT)).json()["choices"]
    assert (await watching()[0].post(PATH, json=wire.CHAT)).status_code == 429


async def test_a_long_answer_is_judged_in_stretches_that_overlap(wire):
    guard = wire.WordGuard(Policy(**RULES))
    said = "".join(f"{number:05} " for number in range(2000))
    (after,) = await settled_answers(guard, [said], {})
    assert after.done == "pass"
    assert max(map(len, guard.judged)) == LONGEST
    for one, following in itertools.pairwise(guard.judged):
        assert following.startswith(one[-WINDOW:])
    assert guard.judged[-1].endswith(said[-WINDOW:])
    (after,) = await settled_answers(guard, [f"{said}evil{said}"], {})
    assert after.done == "flag"
