"""LangChain's client of the OpenAI API against a running server."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI

from guardrail.testing import scripted
from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = "a-key-for-tests-0123"
CALL = '<tool_call>{"name": "look", "arguments": {"at": "me"}}</tool_call>'


def look(at: str) -> str:
    """Look at something."""
    return at


@pytest.fixture
def chat_of() -> Callable[..., ChatOpenAI]:
    def make(server, **options) -> ChatOpenAI:
        return ChatOpenAI(
            model="guarded", base_url=server.api, api_key=KEY, max_retries=0, timeout=30, **options
        )

    return make


@pytest.fixture
def chat(chat_of, server) -> ChatOpenAI:
    return chat_of(server)


@pytest.fixture
def expected(server) -> str:
    return server.guard.generate("hello", max_new_tokens=4).text


def test_invoke(chat, expected):
    answer = chat.invoke("hello")
    assert answer.content == expected
    assert answer.response_metadata["finish_reason"] == "length"
    assert answer.usage_metadata["output_tokens"] == 4


def test_stream(chat, expected):
    chunks = list(chat.stream("hello"))
    assert "".join(str(chunk.content) for chunk in chunks) == expected


async def test_astream(chat, expected):
    chunks = [chunk async for chunk in chat.astream("hello")]
    assert "".join(str(chunk.content) for chunk in chunks) == expected


def test_a_picture(chat_of, server, picture_url):
    parts = [
        {"type": "text", "text": "what is it?"},
        {"type": "image_url", "image_url": {"url": picture_url}},
    ]
    chat = chat_of(server, include_response_headers=True)
    answer = chat.invoke([HumanMessage(content=parts)])
    assert answer.response_metadata["headers"]["x-guardrail-modality"] == "image"


def test_bound_tools(chat_of, server, llava):
    chat = chat_of(server, max_tokens=200).bind_tools([look])
    with scripted(llava.model, llava.processor, lambda _: CALL):
        answer = chat.invoke("hello")
        streamed = list(chat.stream("hello"))
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == ("look", {"at": "me"})
    whole = streamed[0]
    for chunk in streamed[1:]:
        whole += chunk
    assert [(c["name"], c["args"]) for c in whole.tool_calls] == [("look", {"at": "me"})]
    with scripted(llava.model, llava.processor, lambda _: "A door."):
        turns = [HumanMessage("hello"), answer, ToolMessage("a door", tool_call_id=call["id"])]
        assert chat.invoke(turns).content == "A door."


def test_a_flagged_chat_is_refused(chat_of, server_of):
    answer = chat_of(server_of(Action.FLAG, refusal_message="No.")).invoke("hello")
    assert answer.content == "No."
    assert answer.additional_kwargs["refusal"] == "No."
    assert answer.response_metadata["finish_reason"] == "content_filter"
