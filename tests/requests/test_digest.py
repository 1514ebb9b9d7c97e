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
