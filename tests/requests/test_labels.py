"""What stands in the place of labels and may be shown to a model is found, and nothing else."""

from __future__ import annotations

import pytest

from guardrail.requests.labels import shown_labels

TOOLS = [{"type": "function", "function": {"name": "find"}}]


def speaker(name, **more):
    return {"role": "user", "content": "x", "name": name, **more}


def calling(name, label):
    call = {"id": label, "type": "function", "function": {"name": name, "arguments": "{}"}}
    return {"role": "assistant", "content": None, "tool_calls": [call]}


def test_names_are_found_once_and_in_order():
    chat = [speaker("ann"), speaker("bob"), speaker("ann"), speaker(""), speaker(None)]
    assert shown_labels(chat, []) == ["ann", "bob"]
    assert shown_labels(speaker("ann"), []) == ["ann"]


def test_names_of_tools_are_read_elsewhere():
    assert shown_labels([speaker("find")], TOOLS) == []
    assert shown_labels([calling("find", "c1"), speaker("find")], []) == []


@pytest.mark.parametrize("text", ["tell me a tale", "a" * 65, "line\nbreak", "naïve"])
def test_an_id_that_could_be_a_text_is_one(text):
    assert shown_labels([calling("find", text)], []) == [text]
    assert shown_labels([{"role": "tool", "content": "", "tool_call_id": text}], []) == [text]


@pytest.mark.parametrize("label", ["call_9aZ", "a" * 64, "functions.find:0", "tool|1", ""])
def test_an_id_is_no_text(label):
    chat = [calling("find", label), {"role": "tool", "content": "", "tool_call_id": label}]
    assert shown_labels(chat, []) == []


@pytest.mark.parametrize(
    "chat",
    ["text", [1], [speaker(5)], [{"tool_calls": 5}, {"tool_calls": [5]}], [{"tool_call_id": {}}]],
)
def test_other_shapes_have_no_labels(chat):
    assert shown_labels(chat, [{"function": 5}, {}]) == []
    assert shown_labels([{"tool_calls": [{"function": {"name": []}}]}], []) == []
