"""The official client's Responses, and the Agents SDK that asks by them, on a running server."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import openai
import pytest
from pydantic import BaseModel

from guardrail.policy import Thresholds
from guardrail.testing import scripted
from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

agents = pytest.importorskip("agents")

KEY = "a-key-for-tests-0123"
TOOL: Any = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": False}
CALL = '<tool_call>{"name": "look", "arguments": {"at": "me"}}</tool_call>'
PICTURES = {"image": Thresholds(steer=-1e9, flag=-1e9)}


@pytest.fixture
def client_of() -> Iterator[Callable[..., openai.OpenAI]]:
    made: list[openai.OpenAI] = []

    def make(server: Any) -> openai.OpenAI:
        made.append(openai.OpenAI(base_url=server.api, api_key=KEY, max_retries=0, timeout=30))
        return made[-1]

    yield make
    for client in made:
        client.close()


@pytest.fixture
def client(client_of, server) -> openai.OpenAI:
    return client_of(server)


def test_an_answer_and_its_verdict(client, server):
    expected = server.guard.generate("hello", max_new_tokens=4)
    answer = client.responses.create(model="guarded", input="hello", store=True)
    assert answer.output_text == expected.text
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage.output_tokens == 4
    assert answer.store is False
    assert answer.model_extra["guardrail"]["action"] == "pass"


def test_a_stream_and_the_clients_own_accumulating_one(client, llava):
    with scripted(llava.model, llava.processor, lambda _: "Well, hello."):
        asked: Any = {"model": "guarded", "input": "hello", "max_output_tokens": 30}
        events = list(client.responses.create(**asked, stream=True))
        with client.responses.stream(**asked) as stream:
            final = stream.get_final_response()
    said = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(said) == final.output_text == "Well, hello."
    assert events[0].model_extra["guardrail"]["action"] == "pass"
    assert (events[-1].type, final.status) == ("response.completed", "completed")


def test_a_call_its_result_and_the_next_turn(client, llava):
    asked: Any = {"model": "guarded", "tools": [TOOL], "max_output_tokens": 200}
    history: list[Any] = [{"role": "user", "content": "Who is there?"}]
    with scripted(llava.model, llava.processor, lambda _: "I look." + CALL):
        answer = client.responses.create(**asked, input=history)
        with client.responses.stream(**asked, input=history) as stream:
            streamed = stream.get_final_response()
    call, same = answer.output[-1], streamed.output[-1]
    assert answer.output_text == streamed.output_text == "I look."
    assert json.loads(call.arguments) == json.loads(same.arguments) == {"at": "me"}
    history += [item.model_dump() for item in answer.output]
    history.append({"type": "function_call_output", "call_id": call.call_id, "output": "a door"})
    with scripted(llava.model, llava.processor, lambda _: "A door."):
        after = client.responses.create(**asked, input=history)
    assert after.output_text == "A door."


class City(BaseModel):
    name: str
    size: int


def test_an_answer_is_parsed_as_the_class_that_was_asked_for(client, client_of, server_of, llava):
    asked: Any = {"model": "guarded", "input": "hello", "max_output_tokens": 200}
    with scripted(llava.model, llava.processor, lambda _: '{"name": "Rome", "size": 3}'):
        answer = client.responses.parse(**asked, text_format=City)
        with client.responses.stream(**asked, text_format=City) as stream:
            streamed = stream.get_final_response()
    assert answer.output_parsed == streamed.output_parsed == City(name="Rome", size=3)
    refusing = client_of(server_of(Action.FLAG, refusal_message="No."))
    refused = refusing.responses.parse(**asked, text_format=City)
    assert refused.output_parsed is None
    assert refusal_of(refused) == "No."


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "go"}])
def test_a_call_can_be_forced(client, choice):
    go: Any = {"name": "go", "parameters": {"type": "object", "additionalProperties": False}}
    answer = client.responses.create(
        model="guarded",
        input="hello",
        tools=[{"type": "function", "strict": True, **go}],
        tool_choice=choice,
        max_output_tokens=100,
    )
    [call] = answer.output
    assert (call.name, json.loads(call.arguments)) == ("go", {})


def test_the_tokens_of_a_text_are_told_where_they_are_asked_for(client, llava):
    asked: Any = {"model": "guarded", "max_output_tokens": 60, "top_logprobs": 1}
    asked["include"] = ["message.output_text.logprobs"]
    with scripted(llava.model, llava.processor, lambda _: "Well."):
        answer = client.responses.create(**asked, input="hello")
        history = [{"role": "user", "content": "hello"}, *answer.model_dump()["output"]]
        again = client.responses.create(**asked, input=[*history, history[0]])
    for each in (answer, again):
        [part] = each.output[0].content
        assert "".join(token.token for token in part.logprobs) == "Well."


def refusal_of(answer: Any) -> str:
    [message] = answer.output
    [part] = message.content
    return str(part.refusal)


def test_a_flagged_request_is_refused(client_of, server_of):
    client = client_of(server_of(Action.FLAG, refusal_message="No."))
    answer = client.responses.create(model="guarded", input="hello")
    events = list(client.responses.create(model="guarded", input="hello", stream=True))
    with client.responses.stream(model="guarded", input="hello") as stream:
        final = stream.get_final_response()
    assert refusal_of(answer) == refusal_of(final) == "No."
    assert answer.status == final.status == "completed"
    assert answer.output_text == final.output_text == ""
    assert [e.refusal for e in events if e.type == "response.refusal.done"] == ["No."]
    assert not [event for event in events if "output_text" in event.type]


def test_a_flagged_request_is_an_error_where_the_policy_raises(client_of, server_of):
    client = client_of(server_of(Action.FLAG, on_flag="raise"))
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="guarded", input="hello", stream=stream)
        assert caught.value.code == "content_filter"
        assert caught.value.body["guardrail"]["action"] == "flag"


def test_what_is_not_done_is_an_error_of_the_clients_own(client):
    for field, value in {
        "previous_response_id": "resp_1",
        "background": True,
        "truncation": "auto",
        "tools": [{"type": "web_search"}],
    }.items():
        with pytest.raises(openai.BadRequestError) as caught:
            client.responses.create(model="guarded", input="hello", **{field: value})
        assert caught.value.param == field
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve("resp_1")


async def test_the_async_client(server):
    expected = server.guard.generate("hello", max_new_tokens=4).text
    async with openai.AsyncOpenAI(base_url=server.api, api_key=KEY, max_retries=0) as client:
        answer = await client.responses.create(model="guarded", input="hello")
        stream = await client.responses.create(model="guarded", input="hello", stream=True)
        said = [e.delta async for e in stream if e.type == "response.output_text.delta"]
    assert answer.output_text == expected == "".join(said)


# ---- the Agents SDK, whose default model asks so


@pytest.fixture
async def agent_of(monkeypatch) -> Any:
    monkeypatch.setenv("OPENAI_AGENTS_DISABLE_TRACING", "1")
    agents.set_tracing_disabled(True)
    made: list[openai.AsyncOpenAI] = []

    def make(server: Any, *tools: Any, **options: Any) -> Any:
        made.append(openai.AsyncOpenAI(base_url=server.api, api_key=KEY, max_retries=0))
        model = agents.OpenAIResponsesModel(model="guarded", openai_client=made[-1])
        settings = agents.ModelSettings(max_tokens=200)
        return agents.Agent(
            name="a",
            instructions="Be brief.",
            model=model,
            model_settings=settings,
            tools=[*tools],
            **options,
        )

    yield make
    for client in made:
        await client.close()


def looking(result: Any) -> Any:
    @agents.function_tool
    def look(at: str) -> Any:
        """Look at something."""
        return result

    return look


def by_turn(prompt: str) -> str:
    """What the model says: a call, and after its result a word."""
    return "A door." if "a door" in prompt else CALL


async def events_said(run: Any) -> list[str]:
    return [
        event.data.delta
        async for event in run.stream_events()
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
    ]


async def test_an_agent_calls_a_tool_and_answers(agent_of, server, llava):
    agent = agent_of(server, looking("a door"))
    with scripted(llava.model, llava.processor, by_turn):
        done = await agents.Runner.run(agent, "Who is there?")
        streamed = agents.Runner.run_streamed(agent, "Who is there?")
        said = await events_said(streamed)
        again = await agents.Runner.run(
            agent, [*done.to_input_list(), {"role": "user", "content": "Sure?"}]
        )
    assert done.final_output == streamed.final_output == again.final_output == "A door."
    assert "".join(said) == "A door."


@pytest.mark.parametrize("stream", [True, False])
async def test_a_poisoned_result_ends_an_agents_run(
    agent_of, server_of, llava, picture_url, stream
):
    """A picture in the tool's result is flagged, and nothing is said behind it."""
    picture = agents.ToolOutputImage(image_url=picture_url)
    agent = agent_of(server_of(only=PICTURES, refusal_message="No."), looking(picture))
    heard: list[str] = []

    async def run() -> None:
        if stream:
            heard.extend(await events_said(agents.Runner.run_streamed(agent, "Who is there?")))
        else:
            await agents.Runner.run(agent, "Who is there?")

    with scripted(llava.model, llava.processor, by_turn):
        with pytest.raises(agents.exceptions.ModelRefusalError) as caught:
            await run()
    assert caught.value.refusal == "No."
    assert heard == []


async def test_an_agents_output_has_its_type(agent_of, server, llava):
    agent = agent_of(server, output_type=City)
    with scripted(llava.model, llava.processor, lambda _: '{"name": "Rome", "size": 3}'):
        done = await agents.Runner.run(agent, "Name a city.")
    assert done.final_output == City(name="Rome", size=3)


async def test_an_agent_that_is_refused_at_once_can_answer_by_its_handler(agent_of, server_of):
    agent = agent_of(server_of(Action.FLAG, refusal_message="No."))
    done = await agents.Runner.run(
        agent, "hello", error_handlers={"model_refusal": lambda data: data.error.refusal}
    )
    assert done.final_output == "No."
