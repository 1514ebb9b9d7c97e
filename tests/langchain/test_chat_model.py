"""The chat model: one verdict, nothing before it, nothing of a flagged answer anywhere."""

from __future__ import annotations

import asyncio
import contextlib
import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
from guardrail_langchain import ChatGuardedVLM
from guardrail_langchain.chat_model import guard_options, offered_tools
from guardrail_langchain.replies import no_refusals, refusal
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.load import dumps
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from PIL import Image
from pydantic import BaseModel, ValidationError

from guardrail import (
    ConfigurationError,
    DetectorError,
    Guard,
    GuardrailViolation,
    QueueFullError,
    UnsupportedContentError,
    UnsupportedModelError,
)
from guardrail.policy import REFUSAL, Limits
from guardrail.testing import FakeGuard, scripted, tiny_artefact, tiny_model
from guardrail.types import Action
from tests.waiting import LONG_S

SECRET = "SECRET"


@pytest.fixture
def saying(tiny_parts):
    """`with saying("words"):` the tiny model answers that."""

    def script(words):
        return scripted(tiny_parts[0], tiny_parts[1], lambda _: words)

    return script


class Everything(BaseCallbackHandler):
    """Keeps whatever a callback is told."""

    def __init__(self):
        self.told = []

    def on_chat_model_start(self, *args, **kwargs):
        pass

    def on_llm_new_token(self, *args, **kwargs):
        self.told.append((args, kwargs))

    def on_llm_end(self, *args, **kwargs):
        self.told.append((args, kwargs))

    def on_llm_error(self, *args, **kwargs):
        self.told.append((args, kwargs))


# ---- one request


def test_an_answer_carries_its_verdict_counts_and_reason(chat_for):
    chat = chat_for()
    answer, result = chat.invoke("hi"), chat.guard.generate("hi", max_new_tokens=6, do_sample=False)
    told = answer.response_metadata
    assert answer.content == result.text
    assert told["verdict"] == result.verdict.to_dict(words=False)
    assert told["finish_reason"] == "length"
    assert told["model_name"] == "LlavaForConditionalGeneration"
    assert told["artefact_id"] == chat.guard.artefact.header.artefact_id
    assert told["refused_by_guard"] is False
    assert answer.usage_metadata["input_tokens"] == result.prompt_tokens
    assert answer.usage_metadata["output_tokens"] == 6


async def test_every_way_of_asking_says_the_same(chat_for):
    chat = chat_for()
    expected = chat.invoke("hi").content
    chunks = list(chat.stream("hi"))
    achunks = [chunk async for chunk in chat.astream("hi")]
    assert (await chat.ainvoke("hi")).content == expected
    for found in (chunks, achunks):
        assert "".join(chunk.content for chunk in found) == expected
        assert found[-1].chunk_position == "last"
        assert [bool(c.usage_metadata) for c in found].count(True) == 1
        whole = sum(found[1:], found[0])
        assert whole.response_metadata["verdict"]["action"] == "pass"
        assert whole.response_metadata["finish_reason"] == "length"


def test_a_flagged_request_is_refused_with_a_reason(chat_for):
    chat = chat_for(Action.FLAG)
    for answer in (chat.invoke("hi"), sum_of(chat.stream("hi"))):
        assert answer.content == REFUSAL
        assert answer.response_metadata["finish_reason"] == "flag"
        assert answer.response_metadata["refused_by_guard"] is True
        assert answer.response_metadata["verdict"]["action"] == "flag"


def test_a_flagged_request_raises_where_the_policy_says_so(chat_for):
    chat = chat_for(Action.FLAG, policy={"on_flag": "raise"})
    with pytest.raises(GuardrailViolation):
        chat.invoke("hi")
    with pytest.raises(GuardrailViolation):
        list(chat.stream("hi"))
    # so that LangChain's own routing works
    fallback = chat.with_fallbacks([chat_for()], exceptions_to_handle=(GuardrailViolation,))
    assert fallback.invoke("hi").response_metadata["verdict"]["action"] == "pass"


def test_settings_reach_the_model(chat_for):
    chat = chat_for()
    assert chat.invoke("hi", max_tokens=2).usage_metadata["output_tokens"] == 2
    text = chat.invoke("hi").content
    stop = text[2:4]
    assert chat.invoke("hi", stop=[stop]).content == text[: text.index(stop)]
    one, two = (chat.invoke("hi", temperature=5.0, seed=seed).content for seed in (1, 2))
    assert one == chat.invoke("hi", temperature=5.0, seed=1).content != two


def test_an_unknown_field_keyword_or_block_is_an_error(chat_for):
    with pytest.raises(ValidationError, match="heat"):
        chat_for(heat=1)
    with pytest.raises(ConfigurationError, match="logit_bias"):
        chat_for().invoke("hi", logit_bias={})
    with pytest.raises(UnsupportedContentError, match="audio"):
        chat_for().invoke([HumanMessage([{"type": "audio", "base64": "AAAA"}])])


# ---- streams and callbacks


def sum_of(chunks):
    chunks = list(chunks)
    return sum(chunks[1:], chunks[0])


async def everything_said(chat, callbacks):
    """All that streams, events and callbacks give out, as text."""
    config = {"callbacks": callbacks}
    chain = ChatPromptTemplate.from_messages([("human", "{q}")]) | chat
    said = []
    with contextlib.suppress(GuardrailViolation):
        said += [chunk async for chunk in chain.astream({"q": "hi"}, config)]
    with contextlib.suppress(GuardrailViolation):
        said += list(chain.stream({"q": "hi"}, config))
    with contextlib.suppress(GuardrailViolation):
        async for event in chain.astream_events({"q": "hi"}, config, version="v2"):
            said.append(event)
    with contextlib.suppress(GuardrailViolation):
        said += list(chat.stream_events("hi", version="v3"))
    with contextlib.suppress(GuardrailViolation):
        said.append(await chain.ainvoke({"q": "hi"}, config))
    return repr(said)


@pytest.mark.parametrize("on_flag", ["refuse", "raise"])
async def test_no_token_of_a_flagged_answer_appears_anywhere(chat_for, saying, on_flag):
    watcher = Everything()
    with saying(SECRET):
        shown = await everything_said(chat_for(Action.PASS), [])
        held = await everything_said(chat_for(Action.FLAG, policy={"on_flag": on_flag}), [watcher])
    for trace in (SECRET, "content='S'"):
        assert trace in shown  # so the test would see it
        assert trace not in held
        assert trace not in repr(watcher.told)


async def test_nothing_is_streamed_before_the_verdict(chat_for):
    events = []
    chat = chat_for()
    audited = Guard(
        chat.guard.loaded,
        chat.guard.artefact,
        policy=chat.guard.policy,
        audit=lambda verdict, facts: events.append(facts["event"]),
    )
    with audited:
        stream = ChatGuardedVLM(guard=audited, max_tokens=4).astream("hi")
        await anext(stream)
        assert events[0] == "verdict"
        await stream.aclose()


async def test_a_cancelled_stream_leaves_the_guard_usable(chat_for):
    chat = chat_for(max_tokens=400)

    begun = asyncio.Event()

    async def read():
        async for _ in chat.astream("hi"):
            begun.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(read())
    await asyncio.wait_for(begun.wait(), LONG_S)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await chat.ainvoke("hi", max_tokens=2)).usage_metadata["output_tokens"] == 2
    stream = chat.stream("hi")
    next(stream)
    stream.close()
    assert chat.invoke("hi", max_tokens=2).usage_metadata["output_tokens"] == 2


# ---- several requests


async def test_chains_with_different_policies_on_one_model_do_not_mix(chat_for):
    chats = {action: chat_for(action) for action in (Action.PASS, Action.STEER, Action.FLAG)}
    prompt = ChatPromptTemplate.from_messages([("human", "{q}")])
    asked = [list(chats)[i % 3] for i in range(24)]
    alone = {action: (prompt | chats[action]).invoke({"q": "hi"}) for action in chats}
    answers = await asyncio.gather(*((prompt | chats[a]).ainvoke({"q": "hi"}) for a in asked))
    with ThreadPoolExecutor(8) as pool:
        answers += pool.map(lambda a: (prompt | chats[a]).invoke({"q": "hi"}), asked)
    assert alone[Action.FLAG].content != alone[Action.PASS].content
    for action, answer in zip(asked * 2, answers, strict=True):
        assert answer.content == alone[action].content
        assert answer.response_metadata["verdict"]["action"] == action


async def test_a_batch_larger_than_the_queue_is_answered(chat_for):
    limits = Limits(queue=4, batch=2)
    chat = chat_for(policy={"limits": limits}, max_tokens=2)
    texts = [f"hi {i}" for i in range(20)]
    burst = await asyncio.gather(*(chat.ainvoke(t) for t in texts), return_exceptions=True)
    assert QueueFullError in map(type, burst)
    alone = [chat.invoke(text).content for text in texts]
    assert [a.content for a in await chat.abatch(texts)] == alone
    assert [a.content for a in chat.batch(texts)] == alone
    assert chat.batch([]) == []
    bad = [texts[0], [HumanMessage([{"type": "audio"}])], texts[1]]
    found = chat.batch(bad, return_exceptions=True)
    assert [isinstance(each, AIMessage) for each in found] == [True, False, True]


def test_a_cache_serves_no_answer_made_under_other_rules(chat_for):
    cache = InMemoryCache()
    first = chat_for(cache=cache)
    assert first.invoke("hi").content == first.invoke("hi").content
    assert len(cache._cache) == 1
    for other in (
        chat_for(Action.FLAG, cache=cache),
        chat_for(cache=cache, policy={"mode": "shadow"}),
        chat_for(cache=cache, policy={"refusal_message": "no"}),
        chat_for(cache=cache, max_tokens=3),
        chat_for(cache=cache, seed=1),
        chat_for(cache=cache, stop=["a"]),
    ):
        before = len(cache._cache)
        other.invoke("hi")
        assert len(cache._cache) == before + 1
    model, processor = tiny_model("llava", seed=1)
    with Guard((model, processor), tiny_artefact(model, processor), policy=first.guard.policy) as g:
        before = len(cache._cache)
        ChatGuardedVLM(guard=g, cache=cache, max_tokens=6, temperature=0).invoke("hi")
        assert len(cache._cache) == before + 1


def test_a_cache_tells_pictures_and_running_models_apart(chat_for):
    cache = InMemoryCache()
    chat = chat_for(cache=cache, max_tokens=1)
    picture = Image.new("RGB", (40, 30), "red")

    def score(image):
        answer = chat.invoke([HumanMessage([{"type": "image", "image": image}, "what is this"])])
        return answer.response_metadata["verdict"]["score"]

    first = score(picture)
    picture.paste("blue", (0, 0, 40, 15))  # the same object, repainted in place
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": "what is this"}]
    true = chat.guard.check([{"role": "user", "content": parts}]).score
    assert score(picture) == pytest.approx(true, abs=1e-5)
    assert abs(first - true) > 1e-3
    entries = len(cache._cache)
    assert score(picture) == pytest.approx(true, abs=1e-5)
    assert len(cache._cache) == entries
    model, processor = tiny_model("llava", seed=1)
    artefact, policy = chat.guard.artefact, chat.guard.policy
    with Guard((model, processor), artefact, policy=policy, allow_mismatch=True) as other:
        twin = ChatGuardedVLM(guard=other, cache=cache, max_tokens=1, temperature=0)
        one, two = twin._identifying_params, chat._identifying_params
        assert one["model_fingerprint"] != two["model_fingerprint"]
        assert {k: v for k, v in one.items() if k != "model_fingerprint"} == {
            k: v for k, v in two.items() if k != "model_fingerprint"
        }


async def test_bulk_calls_of_every_kind_fit_the_queue(chat_for):
    chat = chat_for(policy={"limits": Limits(queue=4, batch=2)}, max_tokens=2)
    chats = [[HumanMessage(f"hi {i}")] for i in range(15)]
    alone = [chat.invoke(messages).content for messages in chats]
    result = await chat.agenerate(chats)
    assert [g[0].text for g in result.generations] == alone
    assert len(result.run) == 15
    assert [g[0].text for g in chat.generate(chats).generations] == alone
    found = dict([pair async for pair in chat.abatch_as_completed(chats)])
    assert [found[i].content for i in range(15)] == alone
    assert dict(chat.batch_as_completed(chats))[3].content == alone[3]
    assert (await chat.agenerate([])).generations == []


def test_tokens_are_counted_with_the_models_own_tokenizer(chat_for):
    chat = chat_for()
    ids = chat.guard.loaded.tokenizer.encode("hello", add_special_tokens=False)
    assert chat.get_num_tokens("hello") == len(ids) > 0


def test_a_copy_shares_the_guard(chat_for):
    chat = chat_for()
    copied = copy.deepcopy(chat)
    assert copied.guard is chat.guard
    assert copied.invoke("hi").content == chat.invoke("hi").content


def test_a_lone_stop_string_is_refused_rather_than_read_letter_by_letter(chat_for):
    with pytest.raises(ConfigurationError, match="list of strings"):
        chat_for().invoke("hi", stop="abc")


def test_tools_of_a_call_follow_its_choice(chat_for):
    chat = chat_for(max_tokens=1)
    plain = chat.invoke("hi").usage_metadata["input_tokens"]
    for choice, more in (("none", False), ("auto", True)):
        answer = chat.invoke("hi", tools=[find], tool_choice=choice)
        assert (answer.usage_metadata["input_tokens"] > plain) is more


def test_neither_guard_nor_weights_are_serialised(chat_for):
    chat = chat_for()
    text = dumps(ChatPromptTemplate.from_messages([("human", "{q}")]) | chat | StrOutputParser())
    assert "ChatGuardedVLM" in text
    assert "guard=" not in text
    assert len(text) < 3000
    assert "guard" not in chat.model_dump()


# ---- tools


@tool
def find(q: str) -> str:
    """Find it."""
    return q


class Joke(BaseModel):
    """A joke."""

    setup: str


CALL = '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>'


async def test_calls_come_as_tool_calls_whole_and_streamed(chat_for, saying):
    chat = chat_for(max_tokens=200).bind_tools([find])
    with saying("Well. " + CALL % ("find", '{"q": "a"}')):
        whole = chat.invoke("hi")
        streamed = sum_of(chat.stream("hi"))
    for answer in (whole, streamed):
        assert answer.content == "Well."
        assert [(c["name"], c["args"]) for c in answer.tool_calls] == [("find", {"q": "a"})]
        assert answer.response_metadata["finish_reason"] == "tool_calls"
    assert isinstance(streamed, AIMessageChunk)


@pytest.mark.parametrize(
    ("said", "error"), [("bad", GuardrailViolation), ("outage", DetectorError)]
)
def test_where_no_refusal_has_a_place_an_outage_is_raised_as_one(said, error):
    answer = refusal(REFUSAL, FakeGuard().check(said))
    with pytest.raises(error):
        no_refusals().invoke(answer)
    assert no_refusals().invoke(AIMessage("fine")) == AIMessage("fine")


@pytest.mark.parametrize("on_flag", ["refuse", "raise"])
@pytest.mark.parametrize("include_raw", [False, True])
@pytest.mark.parametrize("schema", [Joke, Joke.model_json_schema()], ids=["model", "schema"])
@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
async def test_a_flagged_request_for_a_form_raises(chat_for, on_flag, include_raw, schema, method):
    chat = chat_for(Action.FLAG, policy={"on_flag": on_flag})
    asked = chat.with_structured_output(schema, include_raw=include_raw, method=method)
    with pytest.raises(GuardrailViolation) as caught:
        asked.invoke("hi")
    assert caught.value.verdict.action is Action.FLAG
    with pytest.raises(GuardrailViolation):
        await asked.ainvoke("hi")
    with pytest.raises(GuardrailViolation):
        list(asked.stream("hi"))
    with pytest.raises(GuardrailViolation):
        [chunk async for chunk in asked.astream("hi")]


def test_a_model_whose_template_knows_no_tools_says_so():
    model, processor = tiny_model("llava")
    processor.chat_template = processor.chat_template.replace("tools", "nothing")
    with Guard((model, processor), tiny_artefact(model, processor)) as guard:
        chat = ChatGuardedVLM(guard=guard)
        with pytest.raises(UnsupportedModelError, match="knows no tools"):
            chat.bind_tools([find])
        with pytest.raises(UnsupportedModelError, match="knows no tools"):
            chat.with_structured_output(Joke, method="function_calling")
        assert chat.bind_tools([]).invoke("hi", max_tokens=1).content  # as agents without tools do


def options(fields=None, stop=None, **call):
    return guard_options(fields or {}, stop, call, "m")


def test_a_calls_keywords_win_over_the_models_fields():
    fields = {"max_new_tokens": 5, "seed": 1, "top_p": None}
    assert options(fields, max_tokens=9) == {"max_new_tokens": 9, "seed": 1}
    assert options(fields, seed=None) == {"max_new_tokens": 5}


def test_stops_of_a_call_replace_those_of_the_model():
    assert options({"stop": ["a"]}) == {"stop": ("a",)}
    assert options({"stop": ["a"]}, stop=["b"]) == {"stop": ("b",)}
    assert options({"stop": ["a"]}, stop=[]) == {}


def test_an_unknown_keyword_and_another_model_are_refused():
    with pytest.raises(ConfigurationError, match="'frequency_penalty'"):
        options(frequency_penalty=1)
    with pytest.raises(ConfigurationError, match="tied to its model"):
        options(model="other")
    assert options(model="m", tool_choice="auto", stream=True) == {}


def add(a: int) -> int:
    """Add."""
    return a


def test_tools_of_every_kind_become_function_schemas():
    schema = {"title": "Thing", "description": "d", "type": "object", "properties": {}}
    ready = {"type": "function", "function": {"name": "r", "parameters": {"type": "object"}}}
    anthropic = {"name": "a", "description": "d", "input_schema": {"type": "object"}}
    found = offered_tools([find, Joke, add, schema, ready, anthropic])
    assert [each["function"]["name"] for each in found] == [
        "find",
        "Joke",
        "add",
        "Thing",
        "r",
        "a",
    ]
    assert all(set(each) == {"type", "function"} for each in found)


@pytest.mark.parametrize(
    ("choice", "word"),
    [
        *((each, None) for each in (None, False, "", "auto")),
        *((each, "required") for each in (True, "any", "required")),
        *((each, "add") for each in ("add", {"function": {"name": "add"}}, {"name": "add"})),
        ("none", "none"),
    ],
)
def test_every_form_of_a_choice_reaches_the_guard(choice, word):
    found = options(tools=[find, add], tool_choice=choice)
    assert found.get("tool_choice") == word
    assert [each["function"]["name"] for each in found["tools"]] == ["find", "add"]


def test_a_choice_that_is_no_tool_and_a_tool_that_runs_elsewhere_are_refused():
    with pytest.raises(ConfigurationError, match="names 'fly'; the tools are find"):
        options(tools=[find], tool_choice="fly")
    with pytest.raises(ConfigurationError, match="web_search"):
        offered_tools([{"type": "web_search"}])


def test_logprobs_are_asked_for_in_langchains_words_and_stand_in_the_metadata(chat_for):
    assert options(logprobs=True, top_logprobs=3) == {"logprobs": 3}
    assert options(logprobs=True) == {"logprobs": 0}
    assert options(logprobs=False) == {}
    chat = chat_for(max_tokens=3)
    whole = chat.invoke("hi", logprobs=2)
    streamed = sum_of(chat.bind(logprobs=True, top_logprobs=2).stream("hi"))
    for answer in (whole, streamed):
        content = answer.response_metadata["logprobs"]["content"]
        assert len(content) == 3
        assert content[0]["top_logprobs"][0]["logprob"] == content[0]["logprob"] < 0
        assert len(content[0]["top_logprobs"]) == 2
    assert "logprobs" not in chat.invoke("hi").response_metadata
