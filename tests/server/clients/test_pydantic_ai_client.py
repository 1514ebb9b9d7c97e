"""Pydantic-AI with our server as its model: answers, refusals, streams, tools, history."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.exceptions import ContentFilterError
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from guardrail.testing import scripted
from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

KEY = "a-key-for-tests-0123"
CALL = '<tool_call>{"name": "look", "arguments": {"at": "me"}}</tool_call>'
STREAMED = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


@pytest.fixture
async def agent_of() -> AsyncIterator[Callable[..., Agent[Any, Any]]]:
    clients = []

    def make(server: Any, tokens: int = 4, **options: Any) -> Agent[Any, Any]:
        client = AsyncOpenAI(base_url=server.api, api_key=KEY, max_retries=0, timeout=30)
        clients.append(client)
        model = OpenAIChatModel("guarded", provider=OpenAIProvider(openai_client=client))
        return Agent(model, model_settings={"max_tokens": tokens}, **options)

    yield make
    for client in clients:
        await client.close()


async def run(agent: Agent[Any, Any], prompt: str, stream: bool = False, **options: Any) -> Any:
    """The output, and the last answer."""
    if not stream:
        result = await agent.run(prompt, **options)
        return result.output, result.response
    async with agent.run_stream(prompt, **options) as streamed:
        return await streamed.get_output(), streamed.response


@STREAMED
async def test_an_answer_is_the_models(agent_of, server, stream):
    expected = server.guard.generate("hello", max_new_tokens=4).text
    output, _ = await run(agent_of(server), "hello", stream)
    assert output == expected


async def test_a_flagged_prompt_is_pydantic_ais_own_error(agent_of, server_of):
    with pytest.raises(ContentFilterError, match=r"Refusal: 'No\.'"):
        await run(agent_of(server_of(Action.FLAG, refusal_message="No.")), "hello")


async def test_a_stream_ends_with_the_refusal(agent_of, server_of):
    agent = agent_of(server_of(Action.FLAG, refusal_message="No."))
    output, response = await run(agent, "hello", True)
    assert output == "No."
    assert response.finish_reason == "content_filter"


async def test_a_poisoned_result_of_a_tool_is_refused(agent_of, careful, poisoned, llava):
    def asked(result: str) -> Agent[Any, Any]:
        def look(at: str) -> str:
            """Look."""
            return result

        return agent_of(careful, 200, tools=[look])

    def script(prompt: str) -> str:
        return "A door." if "a door" in prompt else CALL

    with scripted(llava.model, llava.processor, script):
        assert (await run(asked("a door"), "what is there?"))[0] == "A door."
        with pytest.raises(ContentFilterError, match=r"Refusal: 'No\.'"):
            await run(asked(poisoned), "what is there?")


async def test_a_history_goes_along(agent_of, server, llava):
    prompts = []

    def script(prompt: str) -> str:
        prompts.append(prompt)
        return "A door."

    agent = agent_of(server, 40)
    with scripted(llava.model, llava.processor, script):
        first = await agent.run("what is there?")
        await agent.run("and now?", message_history=first.all_messages())
    assert prompts[-1].index("what is there?") < prompts[-1].index("A door.")
    assert "and now?" in prompts[-1]
