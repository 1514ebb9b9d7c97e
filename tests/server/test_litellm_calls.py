"""Of a LiteLLM call everything is judged, and nothing twice."""

from __future__ import annotations

from typing import Any

import pytest

from guardrail.server.litellm_calls import cautioned, contents
from guardrail.server.litellm_schema import LiteLLMBody

CHAT = [{"role": "user", "content": "hello"}]
TOOL = {"type": "function", "function": {"name": "look", "parameters": {}}}


def judged(**fields: Any) -> list[Any]:
    return contents(LiteLLMBody.model_validate({"input_type": "request"} | fields))


def parts_of(content: Any) -> list[Any]:
    (message,) = content.value
    assert message["role"] == "user"
    return message["content"]


def test_a_chat_is_judged_as_it_is_and_its_texts_are_not_judged_again():
    (content,) = judged(structured_messages=CHAT, texts=["hello"])
    assert content.value == CHAT


def test_texts_without_a_chat_are_a_prompt():
    (content,) = judged(texts=["one", "two"])
    assert parts_of(content) == [{"type": "text", "text": "one\ntwo"}]


def test_what_is_not_in_the_chat_is_judged_beside_it():
    chat, beside = judged(structured_messages=CHAT, texts=["hello", "more"], images=["data:x"])
    assert chat.value == CHAT
    assert parts_of(beside) == [
        {"type": "text", "text": "more"},
        {"type": "image_url", "image_url": {"url": "data:x"}},
    ]


def test_a_picture_in_the_chat_is_not_judged_again():
    chat = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:x"}}]}]
    assert len(judged(structured_messages=chat, images=["data:x"])) == 1


def test_functions_go_with_the_chat_and_other_tools_as_text():
    other = {"type": "web_search", "filters": {"allowed": ["a"]}}
    (content,) = judged(structured_messages=CHAT, tools=[TOOL, other])
    assert content.tools == [TOOL]
    assert len(content.beside) == 1
    assert "web_search" in content.beside[0]


def test_what_stands_beside_a_tools_function_is_judged_too():
    (content,) = judged(structured_messages=CHAT, tools=[TOOL | {"description": "and more"}])
    assert content.tools == []
    assert "and more" in content.beside[0]


def test_a_text_is_judged_although_it_stands_where_the_guard_does_not_read():
    hidden = [{"type": "redacted_thinking", "data": "more"}, {"type": "text", "text": "hello"}]
    chat = [{"role": "assistant", "content": hidden}]
    _, beside = judged(structured_messages=chat, texts=["hello", "more"])
    assert parts_of(beside) == [{"type": "text", "text": "more"}]


def test_tools_without_a_chat_are_text():
    (content,) = judged(texts=["hello"], tools=[TOOL])
    assert "look" in parts_of(content)[0]["text"]
    assert parts_of(content)[1]["text"] == "hello"


def test_a_call_is_judged_unless_the_chat_holds_it():
    call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": '{"a": 1}'}}
    (alone,) = judged(tool_calls=[call])
    assert '{\\"a\\": 1}' in parts_of(alone)[0]["text"]
    chat = [*CHAT, {"role": "assistant", "content": None, "tool_calls": [call]}]
    assert len(judged(structured_messages=chat, tool_calls=[call])) == 1


@pytest.mark.parametrize("fields", [{}, {"texts": []}, {"structured_messages": []}])
def test_a_call_without_content_needs_no_verdict(fields):
    assert judged(**fields) == []


def test_a_caution_stands_before_the_first_text():
    assert cautioned(["a", "b"], "Mind.") == ["Mind.\n\na", "b"]
    assert cautioned([], "Mind.") is cautioned(None, "Mind.") is None
