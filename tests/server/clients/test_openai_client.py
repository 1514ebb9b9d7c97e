"""The official client against a running server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import openai
import pytest
from pydantic import BaseModel

from guardrail.testing import scripted
from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEY = "a-key-for-tests-0123"
CHAT: list[Any] = [{"role": "user", "content": "hello"}]
TOOL: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = '<tool_call>{"name": "look", "arguments": {"at": "me"}}</tool_call>'


@pytest.fixture
def client_of() -> Iterator[Callable[..., openai.OpenAI]]:
    made: list[openai.OpenAI] = []

    def make(server: Any, key: str = KEY) -> openai.OpenAI:
        made.append(openai.OpenAI(base_url=server.api, api_key=key, max_retries=0, timeout=30))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(client_of, server) -> openai.OpenAI:
    return client_of(server)


def test_an_answer_and_its_verdict(client, server):
    expected = server.guard.generate("hello", max_new_tokens=4)
    answer = client.chat.completions.create(model="guarded", messages=CHAT, seed=1, user="me")
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.completion_tokens == 4
    assert answer.system_fingerprint == server.guard.artefact.artefact_id
    assert answer.model_extra["guardrail"]["action"] == "pass"


def test_headers_tell_the_verdict_of_a_raw_answer(client):
    raw = client.chat.completions.with_raw_response.create(model="guarded", messages=CHAT)
    assert raw.headers["x-guardrail-action"] == "pass"
    assert raw.headers["x-request-id"]
    assert raw.parse().object == "chat.completion"


def test_a_stream(client, server):
    expected = server.guard.generate("hello", max_new_tokens=4)
    stream = client.chat.completions.create(
        model="guarded", messages=CHAT, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    said = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert said == expected.text
    assert chunks[0].model_extra["guardrail"]["action"] == "pass"
    assert chunks[-2].choices[0].finish_reason == "length"
    assert chunks[-1].usage.completion_tokens == 4


def test_the_clients_own_accumulating_stream(client, llava):
    script = scripted(llava.model, llava.processor, lambda _: "Well, hello.")
    asked = client.chat.completions.stream(model="guarded", messages=CHAT, max_tokens=30)
    with script, asked as stream:
        for _ in stream:
            pass
        final = stream.get_final_completion()
    assert final.choices[0].message.content == "Well, hello."
    assert final.choices[0].finish_reason == "stop"


def test_a_picture(client, picture_url):
    parts = [
        {"type": "text", "text": "what is it?"},
        {"type": "image_url", "image_url": {"url": picture_url}},
    ]
    answer = client.chat.completions.create(
        model="guarded", messages=[{"role": "user", "content": parts}]
    )
    assert answer.model_extra["guardrail"]["modality"] == "image"


def test_tools(client, llava):
    with scripted(llava.model, llava.processor, lambda _: CALL):
        answer = client.chat.completions.create(
            model="guarded", messages=CHAT, tools=[TOOL], max_tokens=200
        )
        (call,) = answer.choices[0].message.tool_calls
        stream = client.chat.completions.stream(
            model="guarded", messages=CHAT, tools=[TOOL], max_tokens=200
        )
        with stream as events:
            for _ in events:
                pass
            streamed = events.get_final_completion()
    assert answer.choices[0].finish_reason == "tool_calls"
    assert json.loads(call.function.arguments) == {"at": "me"}
    (same,) = streamed.choices[0].message.tool_calls
    assert (same.function.name, json.loads(same.function.arguments)) == ("look", {"at": "me"})

    back = [*CHAT, answer.choices[0].message.model_dump(exclude_none=True)]
    back.append({"role": "tool", "tool_call_id": call.id, "content": "a door"})
    again = client.chat.completions.create(model="guarded", messages=back, tools=[TOOL])
    assert again.choices[0].finish_reason == "length"


class City(BaseModel):
    name: str
    size: int


SAID = '{"name": "Rome", "size": 3}'


def test_an_answer_is_parsed_as_the_class_that_was_asked_for(client, llava):
    prompts: list[str] = []

    def say(prompt: str) -> str:
        prompts.append(prompt)
        return SAID

    asked: Any = {"model": "guarded", "messages": CHAT, "max_tokens": 200}
    with scripted(llava.model, llava.processor, say):
        answer = client.chat.completions.parse(**asked, response_format=City)
        with client.chat.completions.stream(**asked, response_format=City) as stream:
            streamed = stream.get_final_completion()
    assert answer.choices[0].message.parsed == City(name="Rome", size=3)
    assert streamed.choices[0].message.parsed == City(name="Rome", size=3)
    assert all('"City"' in prompt for prompt in prompts)  # shown to the model, and so judged


def test_an_answer_that_nobody_scripted_is_json_all_the_same(client):
    small = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"]}
    form = {"name": "n", "schema": small | {"additionalProperties": False}}
    answer = client.chat.completions.create(
        model="guarded",
        messages=CHAT,
        max_tokens=50,
        response_format={"type": "json_schema", "json_schema": form},
    )
    assert json.loads(answer.choices[0].message.content)["a"] in ("x", "y")
    assert answer.choices[0].finish_reason == "stop"


def test_a_flagged_chat_is_not_parsed_and_says_so(client_of, server_of):
    client = client_of(server_of(Action.FLAG, refusal_message="No."))
    with pytest.raises(openai.ContentFilterFinishReasonError) as caught:
        client.chat.completions.parse(model="guarded", messages=CHAT, response_format=City)
    assert caught.value.completion.choices[0].message.refusal == "No."


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "go"}}])
def test_a_call_can_be_forced(client, choice):
    go: Any = {"name": "go", "parameters": {"type": "object", "additionalProperties": False}}
    answer = client.chat.completions.create(
        model="guarded",
        messages=CHAT,
        tools=[{"type": "function", "function": go}],
        tool_choice=choice,
        max_tokens=100,
    )
    [call] = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("go", {})
    assert answer.choices[0].finish_reason == "tool_calls"


@pytest.mark.parametrize("stream", [True, False])
def test_the_tokens_that_are_told_are_those_of_the_text(client, llava, stream):
    said = "Well, h\u00e9llo \U0001f600."
    asked: Any = {"model": "guarded", "messages": CHAT, "logprobs": True, "top_logprobs": 2}
    with scripted(llava.model, llava.processor, lambda _: said):
        if stream:
            with client.chat.completions.stream(**asked, max_tokens=60) as events:
                choice = events.get_final_completion().choices[0]
        else:
            choice = client.chat.completions.create(**asked, max_tokens=60).choices[0]
    told = choice.logprobs.content
    assert choice.message.content == said
    assert b"".join(bytes(token.bytes) for token in told).decode() == said
    assert all(len(token.top_logprobs) == 2 for token in told)


def test_several_answers(client):
    asked: Any = {"model": "guarded", "messages": CHAT, "n": 3, "temperature": 1, "seed": 1}
    answer = client.chat.completions.create(**asked)
    streamed = dict.fromkeys(range(3), "")
    for chunk in client.chat.completions.create(**asked, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert {choice.index: choice.message.content for choice in answer.choices} == streamed


def test_a_flagged_chat_is_refused(client_of, server_of):
    client = client_of(server_of(Action.FLAG, refusal_message="No."))
    choice = client.chat.completions.create(model="guarded", messages=CHAT).choices[0]
    assert choice.finish_reason == "content_filter"
    assert choice.message.content == choice.message.refusal == "No."
    stream = client.chat.completions.create(model="guarded", messages=CHAT, stream=True)
    chunks = list(stream)
    assert [c.choices[0].delta.refusal for c in chunks if c.choices[0].delta.refusal] == ["No."]
    assert chunks[-1].choices[0].finish_reason == "content_filter"


def test_a_flagged_chat_is_an_error_where_the_policy_raises(client_of, server_of):
    client = client_of(server_of(Action.FLAG, on_flag="raise"))
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="guarded", messages=CHAT, stream=stream)
        assert caught.value.code == "content_filter"
        assert caught.value.body["guardrail"]["action"] == "flag"


def test_errors_are_the_clients_own(client, client_of, server):
    ask = client.chat.completions.create
    with pytest.raises(openai.BadRequestError) as bad:
        ask(model="guarded", messages=CHAT, n=9)
    assert bad.value.param == "n"
    with pytest.raises(openai.NotFoundError) as lost:
        ask(model="other", messages=CHAT)
    assert lost.value.code == "model_not_found"
    with pytest.raises(openai.UnprocessableEntityError):
        ask(model="guarded", messages=[{"role": "critic", "content": "x"}])
    with pytest.raises(openai.AuthenticationError):
        client_of(server, "another-key-0123456").chat.completions.create(
            model="guarded", messages=CHAT
        )
    assert [model.id for model in client.models.list()] == ["guarded"]
    assert client.models.retrieve("guarded").id == "guarded"


def test_too_many_at_once_are_told_when_to_come_back(client_of, server_of):
    client = client_of(server_of(max_concurrent=1))
    ask = client.chat.completions.create
    with ask(model="guarded", messages=CHAT, stream=True, max_tokens=2_000) as stream:
        next(iter(stream))
        with pytest.raises(openai.RateLimitError) as caught:
            ask(model="guarded", messages=CHAT)
    assert int(caught.value.response.headers["retry-after"]) >= 1


async def test_the_async_client(server):
    expected = server.guard.generate("hello", max_new_tokens=4).text
    async with openai.AsyncOpenAI(base_url=server.api, api_key=KEY, max_retries=0) as client:
        answer = await client.chat.completions.create(model="guarded", messages=CHAT)
        stream = await client.chat.completions.create(model="guarded", messages=CHAT, stream=True)
        said = [c.choices[0].delta.content or "" async for c in stream]
    assert answer.choices[0].message.content == expected == "".join(said)
