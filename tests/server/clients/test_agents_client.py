"""The OpenAI Agents SDK with our server as its model: answers, refusals, streams, tools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from agents import (
    Agent,
    ModelRefusalError,
    ModelSettings,
    OpenAIChatCompletionsModel,
    Runner,
    SQLiteSession,
    function_tool,
    set_tracing_disabled,
)
from openai import AsyncOpenAI

from guardrail.testing import scripted
from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

KEY = "a-key-for-tests-0123"
CALL = '<tool_call>{"name": "look", "arguments": {"at": "me"}}</tool_call>'
STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@pytest.fixture(autouse=True)
def no_traces() -> Iterator[None]:
    set_tracing_disabled(True)
    yield
    set_tracing_disabled(False)


@pytest.fixture
async def agent_of() -> AsyncIterator[Callable[..., Agent[Any]]]:
    clients = []

    def make(server: Any, tokens: int = 4, **options: Any) -> Agent[Any]:
        client = AsyncOpenAI(base_url=server.api, api_key=KEY, max_retries=0, timeout=30)
        clients.append(client)
        model = OpenAIChatCompletionsModel(model="guarded", openai_client=client)
        settings = ModelSettings(max_tokens=tokens)
        return Agent("helper", model=model, model_settings=settings, **options)

    yield make
    for client in clients:
        await client.close()


async def run(agent: Agent[Any], items: Any, stream: bool = False, **options: Any) -> Any:
    if not stream:
        return await Runner.run(agent, items, **options)
    result = Runner.run_streamed(agent, items, **options)
    async for _ in result.stream_events():
        pass
    return result


@STREAMED
async def test_an_answer_is_the_models(agent_of, server, stream):
    expected = server.guard.generate("hello", max_new_tokens=4).text
    assert (await run(agent_of(server), "hello", stream)).final_output == expected


@STREAMED
async def test_a_refusal_is_the_sdks_own_error(agent_of, server_of, stream):
    agent = agent_of(server_of(Action.FLAG, refusal_message="No."))
    with pytest.raises(ModelRefusalError) as refused:
        await run(agent, "hello", stream)
    assert refused.value.refusal == "No."


async def test_a_poisoned_result_of_a_tool_is_refused(agent_of, careful, poisoned, llava):
    def asked(result: str) -> Agent[Any]:
        tool = function_tool(lambda at: result, name_override="look", description_override="Look.")
        return agent_of(careful, 200, tools=[tool])

    def script(prompt: str) -> str:
        return "A door." if "a door" in prompt else CALL

    with scripted(llava.model, llava.processor, script):
        assert (await run(asked("a door"), "what is there?")).final_output == "A door."
        with pytest.raises(ModelRefusalError) as refused:
            await run(asked(poisoned), "what is there?")
    assert refused.value.refusal == "No."


async def test_a_session_brings_the_history_along(agent_of, server, llava):
    prompts = []

    def script(prompt: str) -> str:
        prompts.append(prompt)
        return "A door."

    session, agent = SQLiteSession("s"), agent_of(server, 40)
    with scripted(llava.model, llava.processor, script):
        await run(agent, "what is there?", session=session)
        await run(agent, "and now?", session=session)
    session.close()
    assert prompts[-1].index("what is there?") < prompts[-1].index("A door.")
    assert "and now?" in prompts[-1]
