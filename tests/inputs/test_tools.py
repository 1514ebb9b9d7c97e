"""Tools and calls: one form, nothing lost, bounded."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from PIL import Image

from guardrail.errors import LimitExceededError, UnsupportedContentError
from guardrail.inputs.limits import Budget
from guardrail.inputs.messages import to_request
from guardrail.inputs.tools import call_text, read_tool_call, read_tools, request_digest
from guardrail.policy import Limits, Policy

SCHEMA = {"type": "object", "properties": {"q": {"type": "string"}}}

TOOL = {"type": "function", "function": {"name": "find", "description": "d", "parameters": SCHEMA}}


def budget(**limits: int) -> Budget:
    return Budget(Limits(**limits))


def read(call: Any) -> Any:
    return read_tool_call(call, "call", budget())


@pytest.mark.parametrize(
    "call",
    [
        {"id": "c1", "type": "function", "function": {"name": "find", "arguments": '{"q":"é"}'}},
        {"id": "c1", "function": {"name": "find", "arguments": {"q": "é"}}},
        {"id": "c1", "type": "tool_call", "name": "find", "args": {"q": "é"}},
        {"id": "c1", "name": "find", "arguments": '{ "q" : "\\u00e9" }'},
    ],
)
def test_every_form_of_a_call_reads_the_same(call: Any) -> None:
    found = read(call)
    assert (found.name, found.arguments, found.id) == ("find", {"q": "é"}, "c1")
    assert call_text(found) == '{"name": "find", "arguments": {"q": "é"}}'


@pytest.mark.parametrize("text", ["not json", '{"q": 1, "q": 2}', '{"q": NaN}', "[1]", '"a"', "{"])
def test_arguments_that_parsing_would_change_stay_verbatim(text: str) -> None:
    found = read({"function": {"name": 'a"b', "arguments": text}})
    assert found.arguments == text
    assert call_text(found) == f'{{"name": "a\\"b", "arguments": {text}}}'


def test_a_call_without_arguments_has_empty_ones() -> None:
    found = read({"function": {"name": "now"}})
    assert found.arguments == {}
    assert json.loads(call_text(found)) == {"name": "now", "arguments": {}}


def test_tools_are_copied_and_kept() -> None:
    [tool] = read_tools([TOOL], budget())
    assert tool == TOOL
    assert tool["function"]["parameters"] is not SCHEMA


@pytest.mark.parametrize(
    ("tools", "says"),
    [
        ("find", "list of function schemas"),
        (["find"], r"tools\[0\] is a str"),
        ([{"name": "find"}], r"tools\[0\] is no function schema"),
        ([{"type": "web_search"}], "no function schema"),
        ([{"type": "function", "function": {"description": "d"}}], "needs a name"),
        ([{**TOOL, "defer": True}], "'defer'"),
        ([{"type": "function", "function": {"name": "a", "output": "x"}}], "'output'"),
        ([{"type": "function", "function": {"name": "a", "parameters": object()}}], "JSON"),
    ],
)
def test_a_tool_that_is_not_understood_is_refused(tools: Any, says: str) -> None:
    with pytest.raises(UnsupportedContentError, match=says):
        read_tools(tools, budget())


def test_tools_count_as_text() -> None:
    with pytest.raises(LimitExceededError, match="text_chars"):
        to_request("hi", policy=Policy(limits=Limits(text_chars=20)), tools=[TOOL])


def test_tools_given_later_replace_those_of_a_request() -> None:
    first = to_request("hi", policy=Policy(), tools=[TOOL])
    assert to_request(first, policy=Policy()) == first
    assert to_request(first, policy=Policy(), tools=[]).tools == ()


def _digest(*messages, tools=None):
    return request_digest(to_request(list(messages), policy=Policy(), tools=tools))


def _said(text, role="user", **more):
    return {"role": role, "content": text, **more}


def test_the_same_request_has_the_same_digest():
    assert _digest(_said("a"), _said("b", "assistant")) == _digest(
        _said("a"), _said("b", "assistant")
    )


def test_no_two_different_requests_share_a_digest():
    red, blue = Image.new("RGB", (4, 6), "red"), Image.new("RGB", (4, 6), "blue")
    tall = Image.new("RGB", (6, 4), "red")
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    # the order of keys is what a chat template writes
    turned = {
        "type": "function",
        "function": {"parameters": {"type": "object"}, "name": "f"},
    }
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}

    def look(*images):
        parts = [{"type": "image", "image": image} for image in images]
        return {"role": "user", "content": [*parts, {"type": "text", "text": "a"}]}

    digests = [
        _digest(_said("a")),
        _digest(_said("a", "system")),
        _digest(_said("a"), _said("")),
        _digest(_said("ab")),
        _digest(_said("a"), _said("b")),
        _digest(_said("a", name="n")),
        _digest(_said("a"), tools=[tool]),
        _digest(_said("a"), tools=[turned]),
        _digest(_said("a"), _said("", "assistant", tool_calls=[call])),
        _digest(look(red)),
        _digest(look(blue)),
        _digest(look(tall)),
        _digest(look(red, blue)),
        _digest(look(blue, red)),
        _digest(
            {
                "role": "user",
                "content": [{"type": "text", "text": "a"}, {"type": "image", "image": red}],
            }
        ),
    ]
    for one, other in itertools.combinations(digests, 2):
        assert one != other


def test_videos_are_told_apart_by_pixels_times_and_how_they_are_sampled(film):
    def video(source, **more):
        return {"role": "user", "content": [{"type": "video", "video": source, **more}]}

    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    short, long, longer = film(8), film(100), film(101)
    asked = [
        video(frames),
        video(frames, fps=2),
        video(frames[::-1]),
        video(short),
        video(long),
        video(longer),
        {"role": "user", "content": [{"type": "image", "image": frames[0]}]},
    ]
    digests = [_digest(message) for message in asked]
    assert len(set(digests)) == len(asked)
    assert digests == [_digest(message) for message in asked]
    request = to_request([video(long)], policy=Policy())
    other = to_request([video(long)], policy=Policy(video={"window": 5}))
    assert request_digest(request) != request_digest(other)
