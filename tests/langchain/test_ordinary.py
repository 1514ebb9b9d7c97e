"""What providers' classes put beside words is quiet: ids, kinds, ciphers, counts."""

from __future__ import annotations

from typing import Any

import pytest
from guardrail_langchain.beside import bound_beside
from guardrail_langchain.messages import to_judged_chat
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from pydantic import BaseModel

CIPHER = "EqQBCgIYAhIM" + "aB1+/" * 40 + "=="
CALL = {"name": "find", "args": {"q": "a cat"}, "id": "call_1", "type": "tool_call"}
FOUND = {"name": "find", "arguments": '{"q": "a cat"}'}


class Person(BaseModel):
    name: str
    tags: list[str]


def answer(*content: Any, **more: Any) -> AIMessage:
    return AIMessage(*content, **more)


def openai(**more: Any) -> dict[str, Any]:
    told = {
        "model_name": "gpt-4o-2024-08-06",
        "model_provider": "openai",
        "system_fingerprint": "fp_1",
        "finish_reason": "stop",
        "logprobs": {"content": [{"token": " it", "logprob": -0.1, "top_logprobs": []}]},
        "token_usage": {"completion_tokens": 1},
    }
    return {"id": "chatcmpl-1", "response_metadata": told, **more}


ORDINARY: dict[str, tuple[BaseMessage, list[str]]] = {
    "OpenAI's chat": (answer("so", **openai(additional_kwargs={"refusal": None})), ["so"]),
    "OpenAI's calls": (
        answer(
            "",
            **openai(
                tool_calls=[CALL],
                additional_kwargs={
                    "tool_calls": [
                        {"id": "call_1", "type": "function", "index": 0, "function": FOUND}
                    ]
                },
            ),
        ),
        [],
    ),
    "OpenAI's responses": (
        answer(
            [
                {
                    "type": "reasoning",
                    "id": "rs_1",
                    "summary": [{"type": "summary_text", "text": "I think", "index": 0}],
                    "encrypted_content": CIPHER,
                    "status": "completed",
                    "index": 0,
                },
                {
                    "type": "text",
                    "text": "so",
                    "annotations": [
                        {
                            "type": "url_citation",
                            "url": "https://a.example/b",
                            "title": "A title",
                            "start_index": 0,
                            "end_index": 2,
                        },
                        {"type": "file_citation", "file_id": "file-1", "index": 3},
                    ],
                    "id": "msg_1",
                    "phase": "final_answer",
                    "index": 1,
                },
                {
                    "type": "function_call",
                    "name": "find",
                    "arguments": '{"q": "a cat"}',
                    "call_id": "call_1",
                    "id": "fc_1",
                    "status": "completed",
                },
            ],
            id="resp_1",
            tool_calls=[CALL],
        ),
        ["I think", "so", "A title"],
    ),
    "OpenAI's responses, older": (
        answer(
            [{"type": "text", "text": "so", "annotations": []}],
            additional_kwargs={
                "reasoning": {
                    "id": "rs_1",
                    "type": "reasoning",
                    "summary": [{"type": "summary_text", "text": "I think"}],
                    "encrypted_content": CIPHER,
                },
                "__openai_function_call_ids__": {"call_1": "fc_1"},
                "tool_outputs": [{"id": "ws_1", "type": "web_search_call", "status": "completed"}],
            },
            tool_calls=[CALL],
        ),
        ["I think", "so"],
    ),
    "LangChain's own blocks": (
        answer(
            [
                {
                    "type": "reasoning",
                    "id": "lc_rs_1",
                    "reasoning": "I think",
                    "index": "lc_rs_0",
                    "extras": {"encrypted_content": CIPHER},
                },
                {"type": "text", "text": "so", "index": "lc_txt_0", "id": "msg_1"},
                {**CALL, "extras": {"item_id": "fc_1", "status": "completed"}},
            ],
            tool_calls=[CALL],
            response_metadata={"output_version": "v1"},
        ),
        ["I think", "so"],
    ),
    "Anthropic's": (
        answer(
            [
                {"type": "thinking", "thinking": "I think", "signature": CIPHER, "index": 0},
                {
                    "type": "text",
                    "text": "so",
                    "citations": [
                        {
                            "type": "char_location",
                            "cited_text": "a cited text",
                            "document_index": 0,
                            "document_title": "My notes",
                            "start_char_index": 0,
                            "end_char_index": 4,
                            "file_id": None,
                        }
                    ],
                },
                {
                    "type": "tool_use",
                    "id": "call_1",
                    "name": "find",
                    "input": {"q": "a cat"},
                    "caller": {"type": "direct"},
                },
            ],
            tool_calls=[CALL],
        ),
        ["I think", "so", "a cited text", "My notes"],
    ),
    "Anthropic's cache": (
        SystemMessage(
            [
                {
                    "type": "text",
                    "text": "be kind",
                    "cache_control": {"type": "ephemeral", "ttl": "5m"},
                }
            ]
        ),
        ["be kind"],
    ),
    "Anthropic's document": (
        HumanMessage(
            [
                {
                    "type": "document",
                    "source": {"type": "text", "media_type": "text/plain", "data": "words"},
                    "title": "My notes",
                    "citations": {"enabled": True},
                }
            ]
        ),
        ["My notes\nwords"],
    ),
    "Google's": (
        answer(
            [{"type": "text", "text": "so", "extras": {"signature": CIPHER}, "index": 1}],
            additional_kwargs={
                "function_call": FOUND,
                "__gemini_function_call_thought_signatures__": {"2f1d-aa": CIPHER},
            },
            tool_calls=[CALL],
            response_metadata={"grounding_metadata": {"web_search_queries": ["a b"]}},
        ),
        ["so"],
    ),
    "a router's": (
        answer(
            "so",
            additional_kwargs={
                "reasoning_content": "I think",
                "reasoning_details": [
                    {"type": "reasoning.text", "text": "I think so", "format": "x-v1"},
                    {"type": "reasoning.encrypted", "data": CIPHER, "index": 1},
                ],
            },
        ),
        ["I think", "so", "I think so"],
    ),
    "a recording": (
        answer(
            "",
            additional_kwargs={
                "audio": {"id": "a_1", "data": CIPHER, "expires_at": 1, "transcript": "so it is"}
            },
        ),
        ["so it is"],
    ),
    "a parsed answer": (
        answer(
            '{"name": "Ada", "tags": ["a b"]}',
            additional_kwargs={"parsed": Person(name="Ada", tags=["a b"])},
        ),
        ['{"name": "Ada", "tags": ["a b"]}'],
    ),
    "a developer": (
        SystemMessage("be kind", additional_kwargs={"__openai_role__": "developer"}),
        ["be kind"],
    ),
    "a summary": (HumanMessage("so far", additional_kwargs={"lc_source": "x"}), ["so far"]),
    "a notification": (
        HumanMessage(
            "Done.",
            additional_kwargs={
                "lc_source": "async_subagent",
                "lc_data": {"task_id": "t_42", "status": "success"},
            },
        ),
        ["Done."],
    ),
    "a result": (
        ToolMessage(
            [{"type": "text", "text": "found", "id": "lc_1"}],
            tool_call_id="call_1",
            id="t-1",
            artifact={"raw": "a b"},
        ),
        ["found"],
    ),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_nothing_but_the_words_of_an_ordinary_message_is_judged(name):
    message, expected = ORDINARY[name]
    [turn] = to_judged_chat([message])
    content = turn["content"]
    parts = [content] if isinstance(content, str) else [part["text"] for part in content]
    assert [part for part in parts if part] == expected
    assert len(turn.get("tool_calls", ())) <= 1


def test_settings_without_words_are_no_chat():
    settings = {
        "temperature": 0,
        "max_tokens": 10,
        "reasoning": {"effort": "low", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "service_tier": "auto",
        "user": "u-1",
        "timeout": object(),
        "tool_choice": "any",
        "response_format": {"type": "json_object"},
        "thinking": {"type": "enabled", "budget_tokens": 10},
    }
    assert [*bound_beside(FakeListChatModel(responses=["x"]), **settings)] == []


def test_a_choice_of_a_tool_that_is_offered_says_nothing_new():
    offered = {"type": "function", "function": {"name": "find"}}
    choice = {"type": "function", "function": {"name": "find"}}
    bound = FakeListChatModel(responses=["x"]).bind(tools=[offered], tool_choice=choice)
    assert len([*bound_beside(bound)]) == 1
