"""The official client through a proxy: over sockets, with a real guard and before a real server."""

from __future__ import annotations

import base64
from io import BytesIO

import openai
import pytest

from guardrail.server import ServerSettings, create_app
from guardrail.testing import scripted
from guardrail.types import Action


@pytest.fixture
def image(picture):
    file = BytesIO()
    picture().save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    return {"type": "image_url", "image_url": {"url": url}}


def client_of(url):
    return openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="sk-client", max_retries=0)


def saying(*parts, role="user"):
    return [{"role": role, "content": [*parts]}]


async def test_a_guard_before_another_server_serves_the_official_client(
    guard_of, app_of, served, image
):
    text = {"type": "text", "text": "what is this?"}
    behind = create_app(guard_of(), ServerSettings(model_name="tiny"))
    async with served(behind) as upstream_url:
        app = app_of(guard_of(), url=upstream_url, models={"guarded": "tiny"})
        async with served(app) as url, client_of(url) as client:
            asked = {"model": "guarded", "messages": saying(text, image), "max_tokens": 4}
            whole = await client.chat.completions.create(**asked)
            stream = await client.chat.completions.create(
                **asked, stream=True, stream_options={"include_usage": True}
            )
            chunks = [chunk async for chunk in stream]
            listed = [model.id async for model in client.models.list()]
    assert whole.guardrail["modality"] == "image"
    assert whole.usage.completion_tokens == 4
    words = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert words == whole.choices[0].message.content
    assert chunks[0].guardrail["action"] == "pass"
    assert chunks[-1].usage == whole.usage
    assert chunks[-1].guardrail == chunks[0].guardrail
    assert listed == ["guarded"]


async def test_a_real_guard_stops_a_picture_before_the_upstream(
    guard_of, app_of, served, upstream, image
):
    async with served(app_of(guard_of(Action.FLAG))) as url, client_of(url) as client:
        whole = await client.chat.completions.create(model="big", messages=saying(image))
        stream = await client.chat.completions.create(
            model="big", messages=saying(image), stream=True
        )
        chunks = [chunk async for chunk in stream]
        answer = await client.responses.create(model="big", input="hello")
        events = [
            e async for e in await client.responses.create(model="big", input="hello", stream=True)
        ]
        text = await client.completions.create(model="big", prompt="hello")
    assert upstream.seen == []
    assert whole.choices[0].finish_reason == "content_filter"
    assert whole.choices[0].message.refusal == whole.choices[0].message.content
    assert chunks[-1].choices[0].finish_reason == "content_filter"
    assert answer.status == "completed"
    assert answer.output[0].content[0].refusal == whole.choices[0].message.refusal
    assert events[-1].type == "response.completed"
    assert events[-1].response.output_text == ""
    assert text.choices[0].finish_reason == "content_filter"


async def test_a_real_guard_cautions_what_it_would_steer(guard_of, app_of, served, upstream):
    async with served(app_of(guard_of(Action.STEER))) as url, client_of(url) as client:
        await client.chat.completions.create(
            model="big", messages=[{"role": "user", "content": "hello"}]
        )
    roles = [message["role"] for message in upstream.seen[0].json["messages"]]
    assert roles == ["system", "user"]


async def test_failures_are_the_clients_own_errors(app_of, served, upstream, wire):
    async with served(app_of()) as url, client_of(url) as client:
        ask = client.chat.completions.create
        hello = wire.CHAT["messages"]
        upstream.says({"error": {"message": "too long", "code": "context_length"}}, 400)
        with pytest.raises(openai.BadRequestError, match="too long") as bad:
            await ask(model="big", messages=hello)
        assert bad.value.code == "context_length"
        upstream.says({}, 401)
        with pytest.raises(openai.InternalServerError):  # not the client's key
            await ask(model="big", messages=hello)
        upstream.says({}, 429, retry_after="60")
        with pytest.raises(openai.RateLimitError):
            await ask(model="big", messages=hello)
        upstream.streams(*wire.WORDS, cut=True)
        with pytest.raises(openai.APIError, match="broke the connection off"):
            async for _ in await ask(model="big", messages=hello, stream=True):
                pass


CALL = '<tool_call>{"name": "look", "arguments": {"at": "me"}}</tool_call>'


def by_turn(prompt):
    """What the model behind says: a call, and after its result a word."""
    return "A door." if "a door" in prompt else CALL


@pytest.fixture
def agent_of():
    agents = pytest.importorskip("agents")
    agents.set_tracing_disabled(True)

    def make(client, found):
        @agents.function_tool
        def look(at: str) -> str:
            """Look at something."""
            return found

        model = agents.OpenAIResponsesModel(model="tiny", openai_client=client)
        settings = agents.ModelSettings(max_tokens=200)
        return agents.Agent(name="a", model=model, model_settings=settings, tools=[look])

    return make


@pytest.mark.parametrize(("found", "seen"), [("a door", 2), ("a door, and bad words", 1)])
@pytest.mark.parametrize("streams", [True, False])
async def test_an_agents_responses_are_judged_with_what_its_tools_return(
    guard_of, app_of, served, llava, agent_of, wire, found, seen, streams
):
    agents = pytest.importorskip("agents")
    behind, prompts = create_app(guard_of(), ServerSettings(model_name="tiny")), []

    def say(prompt):
        prompts.append(prompt)
        return by_turn(prompt)

    async def run(agent):
        if not streams:
            return (await agents.Runner.run(agent, "Who is there?")).final_output
        running = agents.Runner.run_streamed(agent, "Who is there?")
        async for _ in running.stream_events():
            pass
        return running.final_output

    async with served(behind) as upstream_url:
        async with served(app_of(url=f"{upstream_url}/v1")) as url, client_of(url) as client:
            agent = agent_of(client, found)
            with scripted(llava.model, llava.processor, say):
                if seen == 2:
                    assert await run(agent) == "A door."
                else:
                    with pytest.raises(agents.exceptions.ModelRefusalError, match="can't help"):
                        await run(agent)
    assert len(prompts) == seen
    assert "bad" not in "".join(prompts)
