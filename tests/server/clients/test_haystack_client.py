"""Haystack's generator of chats, and its agent, against a running server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from guardrail.testing import scripted
from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEY = "a-key-for-tests-0123"
CALL = '<tool_call>{"name": "look", "arguments": {"at": "me"}}</tool_call>'


@pytest.fixture(scope="module")
def haystack() -> Iterator[Any]:
    """The package, imported so that it tells nobody."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HAYSTACK_TELEMETRY_ENABLED", "False")
        import haystack

        yield haystack


@pytest.fixture
def generator_of(haystack: Any) -> Callable[..., Any]:
    from haystack.components.generators.chat import OpenAIChatGenerator
    from haystack.utils import Secret

    def make(server: Any, tokens: int = 4, **options: Any) -> Any:
        return OpenAIChatGenerator(
            api_key=Secret.from_token(KEY),
            model="guarded",
            api_base_url=server.api,
            generation_kwargs={"max_tokens": tokens},
            timeout=30,
            max_retries=0,
            **options,
        )

    return make


def user(words: str) -> Any:
    from haystack.dataclasses import ChatMessage

    return ChatMessage.from_user(words)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_an_answer_is_the_models(generator_of, server, stream):
    expected, chunks = server.guard.generate("hello", max_new_tokens=4).text, []
    more = {"streaming_callback": lambda chunk: chunks.append(chunk.content)} if stream else {}
    [reply] = generator_of(server, **more).run([user("hello")])["replies"]
    assert reply.text == expected
    assert "".join(chunks) == (expected if stream else "")


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_flagged_chat_is_refused(generator_of, server_of, stream):
    server, chunks = server_of(Action.FLAG, refusal_message="No."), []
    more = {"streaming_callback": lambda chunk: chunks.append(chunk.content)} if stream else {}
    [reply] = generator_of(server, **more).run([user("hello")])["replies"]
    assert reply.text == "No."
    assert reply.meta["finish_reason"] == "content_filter"


def test_a_chat_goes_through_a_pipeline_with_its_history(haystack, generator_of, server, llava):
    from haystack.components.builders import ChatPromptBuilder
    from haystack.dataclasses import ChatMessage

    prompts = []

    def script(prompt: str) -> str:
        prompts.append(prompt)
        return "A door."

    history = [user("what is there?"), ChatMessage.from_assistant("A cat."), user("{{ words }}")]
    pipeline = haystack.Pipeline()
    pipeline.add_component("prompt", ChatPromptBuilder(history, required_variables=["words"]))
    pipeline.add_component("llm", generator_of(server, 40))
    pipeline.connect("prompt.prompt", "llm.messages")
    with scripted(llava.model, llava.processor, script):
        found = pipeline.run({"prompt": {"words": "and now?"}})
    assert found["llm"]["replies"][0].text == "A door."
    assert prompts[0].index("what is there?") < prompts[0].index("A cat.") < prompts[0].index("and")


def test_a_poisoned_result_of_an_agents_tool_is_refused(generator_of, careful, poisoned, llava):
    from haystack.components.agents import Agent
    from haystack.tools import Tool

    where = {"type": "object", "properties": {"at": {"type": "string"}}, "required": ["at"]}

    def asked(result: str) -> Any:
        tool = Tool("look", "Look.", where, lambda at: result)
        agent = Agent(chat_generator=generator_of(careful, 200), tools=[tool])
        return agent.run([user("what is there?")])["last_message"]

    def script(prompt: str) -> str:
        return "A door." if "a door" in prompt else CALL

    with scripted(llava.model, llava.processor, script):
        assert asked("a door").text == "A door."
        refused = asked(poisoned)
    assert refused.text == "No."
    assert refused.meta["finish_reason"] == "content_filter"
