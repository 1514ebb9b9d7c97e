from __future__ import annotations

import itertools

from PIL import Image

from guardrail.policy import Policy
from guardrail.requests.digest import request_digest
from guardrail.requests.messages import to_request


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
