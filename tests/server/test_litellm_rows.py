"""What other providers' chats hold beside text is judged, or left for the guard to refuse."""

from __future__ import annotations

import pytest

from guardrail.policy import Policy
from guardrail.requests.messages import to_request
from guardrail.server.litellm_rows import readable
from guardrail.types import TextPart


def text(said: str) -> dict[str, str]:
    return {"type": "text", "text": said}


@pytest.mark.parametrize(
    "row",
    [
        {"role": "user", "content": "hello", "cache_control": {"type": "ephemeral"}},
        {"role": "user", "content": [text("hello")]},
        {"role": "assistant", "content": None, "tool_calls": [], "name": None},
        {"role": "assistant", "content": "x", "audio": {"id": "1"}},
        {"role": "assistant", "content": "x", "thinking_blocks": 7, "reasoning_content": ["y"]},
        {"role": "user", "content": [{"type": "file", "file": {"file_id": "1"}}]},
    ],
)
def test_a_row_in_the_usual_form_or_in_none_stays_as_it_is(row):
    assert readable(row) == row


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"content": "b", "reasoning_content": "a"}, ["a", "b"]),
        ({"content": None, "reasoning_content": "a"}, ["a"]),
        (
            {
                "content": [text("b")],
                "reasoning_content": "a",
                "thinking_blocks": [{"type": "thinking", "thinking": "a", "signature": "s"}],
            },
            ["a", "b"],
        ),
        (
            {"content": [{"type": "thinking", "thinking": "a", "signature": "s"}, text("b")]},
            ["a", "b"],
        ),
        ({"content": [text("b"), {"type": "redacted_thinking", "data": "x"}]}, ["b"]),
        ({"content": "b", "thinking_blocks": [{"type": "redacted_thinking", "data": "x"}]}, ["b"]),
        ({"content": [{"type": "redacted_thinking", "data": "x"}]}, [""]),
    ],
)
def test_reasoning_is_judged_as_text_once(row, said):
    request = to_request([readable({"role": "assistant"} | row)], policy=Policy())
    (message,) = request.messages
    assert message.parts == (TextPart("".join(said)),)


def test_a_reasoning_item_is_judged_but_for_what_is_encrypted():
    item = {"id": "r", "summary": [{"text": "thoughts"}], "encrypted_content": "SECRET"}
    row = readable({"role": "assistant", "content": "b", "reasoning_items": [item]})
    assert "thoughts" in row["content"][0]["text"]
    assert "SECRET" not in str(row)
    assert row["content"][1] == text("b")


def test_a_functions_result_is_a_tools():
    row = {"role": "function", "name": "f", "content": None, "tool_call_id": None}
    assert readable(row)["role"] == "tool"
    assert readable(row)["content"] == ""


def test_whether_a_tool_failed_is_no_content():
    row = {"role": "tool", "content": "x", "tool_call_id": "1", "is_error": True}
    assert readable(row) == {"role": "tool", "content": "x", "tool_call_id": "1"}
