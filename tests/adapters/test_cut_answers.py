"""An answer that is cut, through every adapter of the guard's own model: nothing of it shows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import httpx
import pytest
from guardrail_langchain import ChatGuardedVLM
from guardrail_llamaindex import GuardedVLM
from langchain_core.callbacks import BaseCallbackHandler
from llama_index.core.base.llms.types import ChatMessage
from openai import APIError, AsyncOpenAI

from guardrail import Guard, GuardrailViolation, Policy, Thresholds
from guardrail.online.watching import WatchedAnswer
from guardrail.server import ServerSettings, create_app
from guardrail.testing import scripted, tiny_artefact, tiny_model
from guardrail.types import Modality

if TYPE_CHECKING:
    from collections.abc import Iterator

FAR = dict.fromkeys(Modality, Thresholds(steer=1e9, flag=1e9))
WORDS = (
    "the red cat and the blue dog see a green tree in the sun by day and a moon at night".split()
)
ASKED = "Tell me a story."
TOKENS = 64
FIRST, WIDTH = 2, 4  # of the windows of `tiny_artefact`


class Cut(NamedTuple):
    """A guard that cuts the scripted answer, what it may show of it, and what never."""

    guard: Guard
    allowed: str
    hidden: list[str]


@pytest.fixture(scope="module")
def parts() -> Iterator[tuple[Any, Any]]:
    model, processor = tiny_model("llava")
    said = " ".join(f"{word}{number}" for number, word in enumerate(WORDS))
    with scripted(model, processor, lambda _: said):
        yield model, processor


def guard_on(parts: tuple[Any, Any], seed: int, **rules: Any) -> Guard:
    artefact = tiny_artefact(*parts, tau_answer=9.0, seed=seed)
    return Guard(parts, artefact, policy=Policy(thresholds=FAR, watch="answer", **rules))


def scores(parts: tuple[Any, Any], seed: int) -> tuple[tuple[int, ...], list[float]]:
    """The whole answer's tokens, and the score of each window in it."""
    found: list[float] = []
    hear = WatchedAnswer.hear

    def kept(self: WatchedAnswer, score: float) -> bool:
        found.append(score)
        return hear(self, score)

    with pytest.MonkeyPatch.context() as patch, guard_on(parts, seed) as guard:
        patch.setattr(WatchedAnswer, "hear", kept)
        return guard.generate(ASKED, max_new_tokens=TOKENS).token_ids, found


@pytest.fixture(scope="module")
def late(parts: tuple[Any, Any]) -> tuple[int, float, int, tuple[int, ...]]:
    """A seed and a threshold with which a window in the midst of the answer is the first above.

    The third is how many tokens there are up to its end, the last all tokens.
    """
    for seed in range(50):
        ids, found = scores(parts, seed)
        for at in range(len(found) // 3, 2 * len(found) // 3):
            if found[at] > (before := max(found[:at])):
                return seed, (found[at] + before) / 2, at + FIRST, ids
    raise AssertionError("no window in the midst of the answer stands out")


@pytest.fixture(params=["refuse", "raise"])
def cut(
    request: pytest.FixtureRequest,
    parts: tuple[Any, Any],
    late: tuple[int, float, int, tuple[int, ...]],
) -> Iterator[Cut]:
    seed, threshold, end, ids = late
    decode = parts[1].tokenizer.decode
    allowed, hidden = decode(ids[: end - WIDTH]), decode(ids[end - WIDTH :])
    with guard_on(parts, seed, answer_threshold=threshold, on_flag=request.param) as guard:
        yield Cut(guard, allowed, [word for word in hidden.split() if len(word) > 4][1:])


def nothing_shows(cut: Cut, *told: Any) -> None:
    text = json.dumps([str(each) for each in told])
    assert cut.hidden
    assert [word for word in cut.hidden if word in text] == []


class Everything(BaseCallbackHandler):
    def __init__(self) -> None:
        self.told: list[Any] = []

    def on_llm_new_token(self, *args: Any, **kwargs: Any) -> None:
        self.told.append((args, kwargs))

    def on_llm_end(self, *args: Any, **kwargs: Any) -> None:
        self.told.append((args, kwargs))

    def on_llm_error(self, *args: Any, **kwargs: Any) -> None:
        self.told.append((args, kwargs))


def read(chunks: Any) -> list[Any]:
    """What a stream gives, up to a violation, which ends the list."""
    found: list[Any] = []
    try:
        for chunk in chunks:
            found.append(chunk)
    except GuardrailViolation as violation:
        found.append(violation)
    return found


async def aread(chunks: Any) -> list[Any]:
    found: list[Any] = []
    try:
        async for chunk in chunks:
            found.append(chunk)
    except GuardrailViolation as violation:
        found.append(violation)
    return found


def raises(cut: Cut) -> bool:
    return cut.guard.policy.on_flag == "raise"


def ends_well(cut: Cut, last: Any, text: str) -> None:
    """The refusal behind what may be shown, or a violation."""
    assert isinstance(last, GuardrailViolation) == raises(cut)
    if not raises(cut):
        assert text.endswith(Policy().refusal_message)
        assert cut.allowed.startswith(text.removesuffix(Policy().refusal_message).rstrip())


def test_langchain_shows_nothing_of_it(cut: Cut) -> None:
    chat, seen = ChatGuardedVLM(guard=cut.guard, max_new_tokens=TOKENS), Everything()
    found = read(chat.stream(ASKED, config={"callbacks": [seen]}))
    nothing_shows(cut, *found, *seen.told)
    text = "".join(chunk.content for chunk in found if not isinstance(chunk, GuardrailViolation))
    ends_well(cut, found[-1], text)
    assert len(found) > 3  # it did stream


async def test_langchain_shows_nothing_of_it_in_an_event_loop(cut: Cut) -> None:
    chat = ChatGuardedVLM(guard=cut.guard, max_new_tokens=TOKENS)
    found = await aread(chat.astream(ASKED))
    nothing_shows(cut, *found)
    assert isinstance(found[-1], GuardrailViolation) == raises(cut)


def test_langchain_replaces_an_answer_that_is_not_streamed(cut: Cut) -> None:
    chat = ChatGuardedVLM(guard=cut.guard, max_new_tokens=TOKENS)
    if raises(cut):
        with pytest.raises(GuardrailViolation):
            chat.invoke(ASKED)
        return
    answer = chat.invoke(ASKED)
    assert answer.content == Policy().refusal_message
    assert answer.response_metadata["refused_by_guard"] is True
    assert answer.response_metadata["verdict"]["reason"] == "answer"


def test_llamaindex_shows_nothing_of_it(cut: Cut) -> None:
    llm = GuardedVLM(guard=cut.guard, max_new_tokens=TOKENS)
    found = read(llm.stream_chat([ChatMessage(content=ASKED)]))
    nothing_shows(cut, *found)
    text = "".join(
        chunk.delta or "" for chunk in found if not isinstance(chunk, GuardrailViolation)
    )
    ends_well(cut, found[-1], text)
    assert len(found) > 3


async def test_llamaindex_shows_nothing_of_it_in_an_event_loop(cut: Cut) -> None:
    llm = GuardedVLM(guard=cut.guard, max_new_tokens=TOKENS)
    found = await aread(await llm.astream_chat([ChatMessage(content=ASKED)]))
    nothing_shows(cut, *found)
    assert isinstance(found[-1], GuardrailViolation) == raises(cut)


async def posted(cut: Cut, *, stream: bool) -> httpx.Response:
    app = create_app(cut.guard)
    body = {
        "model": "guarded",
        "messages": [{"role": "user", "content": ASKED}],
        "max_tokens": TOKENS,
        "stream": stream,
    }
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
        model = (await client.get("/v1/models")).json()["data"][0]["id"]
        return await client.post("/v1/chat/completions", json={**body, "model": model})


async def test_the_server_streams_nothing_of_it(cut: Cut) -> None:
    text = (await posted(cut, stream=True)).text
    nothing_shows(cut, text)
    events = [json.loads(e[6:]) for e in text.split("\n\n") if e.startswith("data: {")]
    assert len(events) > 3
    if raises(cut):
        assert "error" in events[-1]
        assert "data: [DONE]" not in text
    else:
        assert [e["choices"][0]["finish_reason"] for e in events if e["choices"]][
            -1
        ] == "content_filter"
        refused = [d for e in events for c in e["choices"] if (d := c["delta"].get("refusal"))]
        assert refused == [Policy().refusal_message]


async def test_the_server_replaces_an_answer_that_is_not_streamed(cut: Cut) -> None:
    answer = await posted(cut, stream=False)
    nothing_shows(cut, answer.text)
    if raises(cut):
        assert answer.status_code == 400
    else:
        (choice,) = answer.json()["choices"]
        assert choice["finish_reason"] == "content_filter"
        assert choice["message"]["refusal"] == Policy().refusal_message


def openai_on(cut: Cut) -> AsyncOpenAI:
    transport = httpx.ASGITransport(create_app(cut.guard, ServerSettings(model_name="guarded")))
    client = httpx.AsyncClient(transport=transport)
    return AsyncOpenAI(
        base_url="http://server/v1", api_key="none", http_client=client, max_retries=0
    )


async def test_openais_responses_stream_nothing_of_it(cut: Cut) -> None:
    events: list[Any] = []
    async with openai_on(cut) as client:
        try:
            stream = await client.responses.create(
                model="guarded", input=ASKED, max_output_tokens=TOKENS, stream=True
            )
            async for event in stream:
                events.append(event)
        except APIError as error:
            assert raises(cut)
            nothing_shows(cut, error.body)
    nothing_shows(cut, *(event.model_dump_json() for event in events))
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text
    if raises(cut):
        assert not any(event.type == "response.completed" for event in events)
        return
    ends_well(cut, events[-1], text)
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.incomplete_details.reason == "content_filter"
    assert events[-1].response.output_text == text


async def test_openais_response_is_a_refusal_where_it_is_not_streamed(cut: Cut) -> None:
    if raises(cut):
        return
    async with openai_on(cut) as client:
        response = await client.responses.create(
            model="guarded", input=ASKED, max_output_tokens=TOKENS
        )
    nothing_shows(cut, response.model_dump_json())
    assert response.status == "completed"
    assert response.output[0].content[0].refusal == Policy().refusal_message  # type: ignore
