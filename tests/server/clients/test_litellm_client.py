"""LiteLLM: its guardrail hook against a running server, and its own chat call."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest

from guardrail.server.litellm import LiteLLMBody
from guardrail.testing import scripted
from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

KEY = "a-key-for-tests-0123"
CALLED = '<tool_call>{"name": "look", "arguments": {}}</tool_call>'
pytestmark = pytest.mark.filterwarnings("ignore:Items? .*TypedDict:UserWarning")

INPUTS = {"texts": ["hello"], "structured_messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture(scope="module")
def litellm() -> Any:
    """The package, imported without a look at the network."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        import litellm
        import litellm.proxy.guardrails.guardrail_hooks.generic_guardrail_api.generic_guardrail_api

        return litellm


@pytest.fixture
async def hook_of(litellm) -> AsyncIterator[Callable[..., Any]]:
    """`hook_of(server)`: LiteLLM's guardrail, which asks this server."""
    from litellm.llms.custom_httpx.http_handler import AsyncHTTPHandler
    from litellm.proxy.guardrails.guardrail_hooks import generic_guardrail_api as hooks

    handler = AsyncHTTPHandler(timeout=30)

    def make(server: Any, key: str = KEY, **options: Any) -> Any:
        return hooks.generic_guardrail_api.GenericGuardrailAPI(
            api_base=server.url,
            api_key=key,
            async_handler=handler,
            guardrail_name="vlm",
            event_hook="pre_call",
            **options,
        )

    yield make
    await handler.close()


async def apply(hook: Any, inputs: dict[str, Any], kind: str = "request") -> Any:
    return await hook.apply_guardrail(
        inputs=dict(inputs), request_data={"metadata": {}}, input_type=kind
    )


async def test_a_call_passes_unchanged(hook_of, server):
    assert await apply(hook_of(server), INPUTS) == {"texts": ["hello"]}


async def test_a_flagged_call_is_blocked_in_the_policys_words(litellm, hook_of, server_of):
    hook = hook_of(server_of(Action.FLAG, refusal_message="No."))
    with pytest.raises(litellm.exceptions.GuardrailRaisedException, match=r"No\."):
        await apply(hook, INPUTS)
    assert await apply(hook, INPUTS, "response") == {"texts": ["hello"]}


async def test_a_call_that_would_be_steered_gets_a_caution(hook_of, server_of):
    hook = hook_of(server_of(Action.STEER, caution_prompt="Mind."))
    assert (await apply(hook, INPUTS))["texts"] == ["Mind.\n\nhello"]


async def test_pictures_and_tools_go_along(hook_of, server, picture_url):
    parts = [
        {"type": "text", "text": "hello"},
        {"type": "image_url", "image_url": {"url": picture_url}},
    ]
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    inputs = {
        "texts": ["hello"],
        "images": [picture_url],
        "structured_messages": [{"role": "user", "content": parts}],
        "tools": [tool],
    }
    found = await apply(hook_of(server), inputs)
    assert found["images"] == [picture_url]
    assert found["texts"] == ["hello"]


async def test_what_cannot_be_judged_does_not_pass(hook_of, server):
    inputs = INPUTS | {"images": ["https://example.org/a.png"]}
    with pytest.raises(Exception, match="422"):
        await apply(hook_of(server), inputs)
    with pytest.raises(Exception, match="401"):
        await apply(hook_of(server, key="another-key-0123456"), INPUTS)


def completion(litellm: Any, server: Any, messages: Any, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        answer = litellm.completion(
            model="openai/guarded",
            api_base=server.api,
            api_key=KEY,
            messages=messages,
            num_retries=0,
            **options,
        )
        return list(answer) if options.get("stream") else answer


HELLO = [{"role": "user", "content": "hello"}]


@pytest.mark.parametrize("stream", [False, True])
def test_litellms_own_chat_call(litellm, server, stream):
    expected = server.guard.generate("hello", max_new_tokens=4).text
    answer = completion(litellm, server, HELLO, stream=stream)
    if stream:
        said = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
    else:
        said = answer.choices[0].message.content
    assert said == expected


@pytest.mark.parametrize("stream", [False, True])
def test_a_flagged_chat_is_refused(litellm, server_of, stream):
    server = server_of(Action.FLAG, refusal_message="No.")
    answer = completion(litellm, server, HELLO, stream=stream)
    if stream:
        said = "".join(chunk.choices[0].delta.content or "" for chunk in answer)
        reason = answer[-1].choices[0].finish_reason
    else:
        said, reason = answer.choices[0].message.content, answer.choices[0].finish_reason
    assert (said, reason) == ("No.", "content_filter")


def test_a_poisoned_result_of_a_tool_is_refused(litellm, careful, poisoned, llava):
    function = {"name": "look", "description": "Look.", "parameters": {"type": "object"}}
    tools = [{"type": "function", "function": function}]
    asked = [{"role": "user", "content": "what is there?"}]

    def script(prompt: str) -> str:
        return "A door." if "a door" in prompt else CALLED

    with scripted(llava.model, llava.processor, script):
        first = completion(litellm, careful, asked, tools=tools, max_tokens=200)
        [call] = first.choices[0].message.tool_calls
        assert call.function.name == "look"
        for result, expected in (("a door", "A door."), (poisoned, "No.")):
            turn = {"role": "tool", "tool_call_id": call.id, "content": result}
            history = [*asked, first.choices[0].message, turn]
            answer = completion(litellm, careful, history, tools=tools, max_tokens=200)
            assert answer.choices[0].message.content == expected


def test_each_field_of_a_call_that_litellm_tells_was_looked_at(litellm):
    from litellm.types.proxy.guardrails.guardrail_hooks import generic_guardrail_api as told

    judged = {"texts", "images", "structured_messages", "tools", "tool_calls"}
    about = {"input_type", "model", "litellm_call_id", "litellm_trace_id", "litellm_version"}
    about |= {"request_data", "request_headers", "additional_provider_specific_params"}
    assert judged <= LiteLLMBody.model_fields.keys()
    assert told.GenericGuardrailAPIRequest.model_fields.keys() <= judged | about
