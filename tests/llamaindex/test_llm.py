"""The guarded model in all its eight ways of answering."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import copy
import gc
import inspect
import json
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from guardrail_llamaindex import GuardedVLM
from llama_index.core.base.llms.types import ChatResponse, CompletionResponse
from llama_index.core.llms import AudioBlock, ChatMessage, ImageBlock, TextBlock
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.schema import ImageNode
from pydantic import ValidationError

from guardrail.errors import (
    ConfigurationError,
    GuardrailViolation,
    LimitExceededError,
    RequestTimeoutError,
    UnsupportedContentError,
)
from guardrail.model.decoder import context_length
from guardrail.policy import REFUSAL, Limits
from guardrail.testing import scripted
from guardrail.types import Action
from tests.waiting import LONG_S, at_rest, auntil, until

PASS, STEER, FLAG = Action.PASS, Action.STEER, Action.FLAG
CHATS = ("chat", "achat", "stream_chat", "astream_chat")
COMPLETIONS = ("complete", "acomplete", "stream_complete", "astream_complete")
STREAMS = ("stream_chat", "astream_chat", "stream_complete", "astream_complete")
ASK = {"role": "user", "content": "tell me about the cat"}


def ask(llm: Any, method: str, value: Any, **kwargs: Any) -> list[Any]:
    """Every response of one call, whichever form it has."""

    async def awaited() -> list[Any]:
        answer = await getattr(llm, method)(value, **kwargs)
        if inspect.isasyncgen(answer):
            return [chunk async for chunk in answer]
        return [answer]

    if method.startswith("a"):
        return asyncio.run(awaited())
    answer = getattr(llm, method)(value, **kwargs)
    return list(answer) if inspect.isgenerator(answer) else [answer]


def text_of(response: Any) -> str | None:
    return response.text if isinstance(response, CompletionResponse) else response.message.content


def prompt_for(method: str) -> Any:
    said = ASK["content"]
    return said if "complete" in method else [ChatMessage(role="user", content=said)]


def chats(png: Any) -> dict[str, tuple[list[ChatMessage], list[dict[str, Any]]]]:
    """LlamaIndex's form of a chat and the guard's own."""
    first, second = ({"type": "image", "image": png(seed)} for seed in (0, 1))
    call = {
        "type": "function",
        "id": "c1",
        "function": {"name": "look", "arguments": {"where": "here"}},
    }
    told = {"role": "tool", "tool_call_id": "c1", "content": "A dog."}
    shown = [ImageBlock(image=png(0)), ImageBlock(image=png(1))]
    return {
        "text": ([ChatMessage(content="what is this")], [{**ASK, "content": "what is this"}]),
        "one picture": (
            [ChatMessage(blocks=[shown[0], TextBlock(text="what is this")])],
            [{"role": "user", "content": [first, {"type": "text", "text": "what is this"}]}],
        ),
        "two pictures": (
            [ChatMessage(role="system", content="Be brief."), ChatMessage(blocks=shown)],
            [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": [first, second]},
            ],
        ),
        "tool results": (
            [
                ChatMessage(content="what is this"),
                ChatMessage(role="assistant", additional_kwargs={"tool_calls": [call]}),
                ChatMessage(
                    role="tool", content="A dog.", additional_kwargs={"tool_call_id": "c1"}
                ),
                ChatMessage(role="tool", blocks=[shown[1]]),
            ],
            [
                {**ASK, "content": "what is this"},
                {"role": "assistant", "content": "", "tool_calls": [call]},
                told,
                {"role": "tool", "content": [second]},
            ],
        ),
    }


# --- answers and verdicts -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["text", "one picture", "two pictures", "tool results"])
@pytest.mark.parametrize("method", CHATS)
def test_the_verdict_is_the_guards_own_for_the_same_chat(guard_on, png, name, method):
    guard = guard_on()
    chat, same = chats(png)[name]
    response = ask(GuardedVLM(guard=guard, max_new_tokens=3), method, chat)[-1]
    wanted, told = guard.check(same), response.raw["verdict"]
    assert told["score"] == pytest.approx(wanted.score, abs=1e-5)
    assert (told["action"], told["modality"]) == (wanted.action, wanted.modality)
    assert text_of(response) == guard.generate(same, max_new_tokens=3).text


@pytest.mark.parametrize("method", COMPLETIONS)
def test_a_completion_is_the_answer_to_one_user_message(guard_on, method):
    guard = guard_on()
    llm = GuardedVLM(guard=guard, max_new_tokens=4)
    response = ask(llm, method, ASK["content"], formatted=True)[-1]
    assert isinstance(response, CompletionResponse)
    assert response.text == guard.generate([ASK], max_new_tokens=4).text
    assert response.raw["verdict"]["score"] == pytest.approx(guard.check([ASK]).score, abs=1e-5)


@pytest.mark.parametrize("method", COMPLETIONS)
def test_a_completion_takes_pictures_before_its_prompt(guard_on, png, method):
    guard = guard_on()
    documents = [
        ImageBlock(image=png(0)),
        ImageNode(image=base64.b64encode(png(1)).decode()),
    ]
    llm = GuardedVLM(guard=guard, max_new_tokens=3)
    response = ask(llm, method, "what is this", image_documents=documents)[-1]
    parts = [{"type": "image", "image": png(seed)} for seed in (0, 1)]
    same = [{"role": "user", "content": [*parts, {"type": "text", "text": "what is this"}]}]
    assert response.raw["verdict"]["score"] == pytest.approx(guard.check(same).score, abs=1e-5)
    assert response.raw["verdict"]["modality"] == "image"


@pytest.mark.parametrize("method", CHATS + COMPLETIONS)
def test_a_response_tells_its_verdict_its_end_and_its_tokens(guard_on, method):
    guard = guard_on()
    response = ask(GuardedVLM(guard=guard, max_new_tokens=4), method, prompt_for(method))[-1]
    result = guard.generate([ASK], max_new_tokens=4)
    usage = {
        "prompt_tokens": result.prompt_tokens,
        "completion_tokens": 4,
        "total_tokens": result.prompt_tokens + 4,
    }
    assert response.raw["usage"] == usage
    assert response.raw["finish_reason"] == "length"
    assert response.raw["refused_by_guard"] is False
    told = dict(response.additional_kwargs)
    assert told.pop("verdict") == response.raw["verdict"]
    assert told == usage
    json.dumps([response.raw, response.additional_kwargs])


@pytest.mark.parametrize("method", CHATS + COMPLETIONS)
def test_a_flagged_request_gets_the_refusal(guard_on, method):
    responses = ask(GuardedVLM(guard=guard_on(FLAG)), method, prompt_for(method))
    assert text_of(responses[-1]) == REFUSAL
    assert responses[-1].raw["verdict"]["action"] == "flag"
    assert responses[-1].raw["finish_reason"] == "flag"
    assert responses[-1].raw["refused_by_guard"] is True


@pytest.mark.parametrize("method", CHATS + COMPLETIONS)
def test_a_flagged_request_raises_where_the_policy_says_so(guard_on, method):
    llm = GuardedVLM(guard=guard_on(FLAG, on_flag="raise"))
    with pytest.raises(GuardrailViolation) as caught:
        ask(llm, method, prompt_for(method))
    assert caught.value.verdict.action is FLAG


@pytest.mark.parametrize("method", ["chat", "astream_complete"])
def test_an_annotated_request_is_answered_and_says_so(guard_on, method):
    plain = GuardedVLM(guard=guard_on(), max_new_tokens=4)
    llm = GuardedVLM(guard=guard_on(FLAG, on_flag="annotate"), max_new_tokens=4)
    response = ask(llm, method, prompt_for(method))[-1]
    assert text_of(response) == text_of(ask(plain, method, prompt_for(method))[-1])
    assert response.raw["verdict"]["action"] == "flag"


def test_a_steered_request_says_so(guard_on):
    response = GuardedVLM(guard=guard_on(STEER), max_new_tokens=3).chat(prompt_for("chat"))
    assert response.raw["verdict"]["action"] == "steer"
    assert response.raw["verdict"]["strength"] > 0


@pytest.mark.parametrize("method", CHATS)
def test_other_blocks_are_refused(guard_on, method):
    with pytest.raises(UnsupportedContentError, match="AudioBlock"):
        ask(GuardedVLM(guard=guard_on()), method, [ChatMessage(blocks=[AudioBlock(audio=b"a")])])


# --- streams --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", STREAMS)
def test_deltas_join_to_the_answer_and_the_last_has_the_figures(guard_on, method):
    chunks = ask(GuardedVLM(guard=guard_on(), max_new_tokens=6), method, prompt_for(method))
    assert len(chunks) > 2
    assert "".join(chunk.delta for chunk in chunks) == text_of(chunks[-1])
    assert all(chunk.delta for chunk in chunks[:-1])
    assert chunks[-1].delta == ""
    so_far = ""
    for chunk in chunks:
        so_far += chunk.delta
        assert text_of(chunk) == so_far
        assert chunk.raw["verdict"] == chunks[-1].raw["verdict"]
    assert ["usage" in chunk.raw for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


def test_nothing_is_streamed_before_the_verdict(guard_on, monkeypatch, events):
    guard = guard_on()
    asked, hold, decide = threading.Event(), threading.Event(), guard._engine._detector.decide

    def slow(*args):
        asked.set()
        assert hold.wait(LONG_S)
        return decide(*args)

    monkeypatch.setattr(guard._engine._detector, "decide", slow)
    stream = GuardedVLM(guard=guard, max_new_tokens=4).stream_chat(prompt_for("chat"))
    got = []
    reader = threading.Thread(target=lambda: got.append(next(stream)))
    reader.start()
    assert asked.wait(LONG_S)
    assert got == []
    assert events.names() == ["LLMChatStartEvent"]
    hold.set()
    reader.join(LONG_S)
    assert got[0].raw["verdict"]["action"] == "pass"
    stream.close()


@pytest.mark.parametrize("method", CHATS + COMPLETIONS)
@pytest.mark.parametrize("on_flag", ["refuse", "raise"])
def test_a_flagged_answer_is_in_no_response_and_no_event(guard_on, llava, events, method, on_flag):
    plain = GuardedVLM(guard=guard_on(), max_new_tokens=8)
    llm = GuardedVLM(guard=guard_on(FLAG, on_flag=on_flag), max_new_tokens=8)
    responses: list[Any] = []
    with scripted(llava.model, llava.processor, lambda _: "ZqZqZq"):
        assert text_of(ask(plain, method, prompt_for(method))[-1]) == "ZqZqZq"
        assert "ZqZqZq" in repr(events.seen)
        events.seen.clear()
        try:
            responses = ask(llm, method, prompt_for(method))
        except GuardrailViolation:
            assert on_flag == "raise"
    told = "".join(repr(item) for item in [*responses, *events.seen])
    assert "Zq" not in told
    assert (REFUSAL in told) == (on_flag == "refuse")
    kind = "Completion" if "complete" in method else "Chat"
    in_progress = [e for e in events.seen if type(e).__name__ == f"LLM{kind}InProgressEvent"]
    assert all(text_of(event.response) == REFUSAL for event in in_progress)


@pytest.mark.parametrize("way", ["close", "break", "forget"])
def test_an_abandoned_stream_ends_its_request(guard_on, passes, way):
    llm = GuardedVLM(guard=guard_on(), max_new_tokens=1000)
    stream = llm.stream_chat(prompt_for("chat"))
    if way == "break":
        for _ in stream:
            passes.hold()
            break
    elif way == "close":
        next(stream)
        passes.hold()
        until(passes.held)
        stream.close()
    del stream
    gc.collect()
    before = passes.begun
    passes.go_on()
    until(lambda: at_rest(llm.guard))
    assert passes.begun <= before + 1
    response = llm.chat(prompt_for("chat"), max_new_tokens=3)
    assert response.raw["usage"]["completion_tokens"] == 3


@pytest.mark.parametrize("way", ["cancel", "break", "aclose"])
def test_an_abandoned_asynchronous_stream_ends_its_request(guard_on, passes, way):
    llm = GuardedVLM(guard=guard_on(), max_new_tokens=1000)

    async def read() -> None:
        stream = await llm.astream_chat(prompt_for("chat"))
        async for _ in stream:
            passes.hold()
            begun.set()
            if way != "cancel":
                break
        if way == "aclose":
            await stream.aclose()

    async def main() -> int:
        task = asyncio.create_task(read())
        await asyncio.wait_for(begun.wait(), LONG_S)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        before = passes.begun
        passes.go_on()
        await auntil(lambda: at_rest(llm.guard))
        assert passes.begun <= before + 1
        response = await llm.achat(prompt_for("chat"), max_new_tokens=3)
        return response.raw["usage"]["completion_tokens"]

    begun = asyncio.Event()
    assert asyncio.run(main()) == 3


# --- instrumentation ------------------------------------------------------------------------------


@pytest.mark.parametrize("method", CHATS + COMPLETIONS)
def test_llamaindexs_events_are_emitted(guard_on, events, method):
    ask(GuardedVLM(guard=guard_on(), max_new_tokens=4), method, prompt_for(method))
    kind = "LLMCompletion" if "complete" in method else "LLMChat"
    names = events.names()
    assert names[0] == f"{kind}StartEvent"
    assert names[-1] == f"{kind}EndEvent"
    assert set(names[1:-1]) == ({f"{kind}InProgressEvent"} if method in STREAMS else set())
    assert events.seen[-1].response.raw["usage"]["completion_tokens"] == 4


# --- settings -------------------------------------------------------------------------------------


def test_fields_and_keywords_reach_the_model_and_keywords_win(guard_on):
    guard = guard_on()
    drawn = {"do_sample": True, "temperature": 3.0, "top_k": 0, "top_p": 0.9, "seed": 5}
    llm = GuardedVLM(guard=guard, max_new_tokens=6, **drawn)
    wanted = guard.generate([ASK], max_new_tokens=6, **drawn).text
    assert text_of(llm.chat(prompt_for("chat"))) == wanted
    other = guard.generate([ASK], max_new_tokens=6, **{**drawn, "seed": 6}).text
    assert text_of(llm.chat(prompt_for("chat"), seed=6)) == other != wanted
    plain = guard.generate([ASK], max_new_tokens=2).text
    assert text_of(llm.complete(ASK["content"], max_new_tokens=2, do_sample=False)) == plain


def test_stop_and_timeout_are_settings(guard_on):
    guard = guard_on()
    stop = guard.generate([ASK], max_new_tokens=8).text[3:5]
    response = GuardedVLM(guard=guard, max_new_tokens=8, stop=(stop,)).chat(prompt_for("chat"))
    assert stop not in text_of(response)
    assert response.raw["finish_reason"] == "stop"
    with pytest.raises(RequestTimeoutError):
        GuardedVLM(guard=guard, timeout=1e-6).chat(prompt_for("chat"))


@pytest.mark.parametrize("method", CHATS + COMPLETIONS)
def test_an_unknown_keyword_is_named(guard_on, method):
    with pytest.raises(ConfigurationError, match="'best_of' is no setting"):
        ask(GuardedVLM(guard=guard_on()), method, prompt_for(method), best_of=3)


def test_a_setting_that_does_not_exist_is_refused_when_it_is_made(guard_on):
    guard = guard_on()
    with pytest.raises(ConfigurationError, match=r"'max_tokens' .* 'max_new_tokens'\?"):
        GuardedVLM(guard=guard, max_tokens=3)
    with pytest.raises(ConfigurationError, match=r"'max_tokens' .* 'max_new_tokens'\?"):
        GuardedVLM(guard=guard).chat(prompt_for("chat"), max_tokens=3)
    with pytest.raises(ConfigurationError, match="'max_tokens'"):
        GuardedVLM.from_dict({"class_name": "GuardedVLM", "max_tokens": 3}, guard=guard)


def test_settings_that_cannot_hold_are_errors(guard_on):
    guard = guard_on(limits=Limits(new_tokens=16))
    with pytest.raises(ValidationError):
        GuardedVLM(guard=guard, temperature=-1)
    with pytest.raises(ConfigurationError, match="temperature"):
        GuardedVLM(guard=guard).chat(prompt_for("chat"), temperature=-1)
    with pytest.raises(LimitExceededError):
        GuardedVLM(guard=guard, max_new_tokens=17).chat(prompt_for("chat"))


def test_metadata_is_the_models(guard_on, llava):
    guard = guard_on()
    metadata = GuardedVLM(guard=guard, max_new_tokens=12).metadata
    assert metadata.context_window == context_length(llava.model)
    assert metadata.num_output == 12
    assert metadata.model_name == guard.loaded.source
    assert metadata.is_chat_model
    assert metadata.is_function_calling_model == guard.supports_tools is True
    assert isinstance(GuardedVLM(guard=guard), FunctionCallingLLM)


def test_metadata_keeps_prompts_within_the_policy(guard_on):
    guard = guard_on(limits=Limits(prompt_tokens=100, new_tokens=20))
    metadata = GuardedVLM(guard=guard).metadata
    assert (metadata.context_window, metadata.num_output) == (120, 20)


def test_predict_works_with_a_template(guard_on):
    guard = guard_on()
    llm = GuardedVLM(guard=guard, max_new_tokens=4, system_prompt="Be brief.")
    said = llm.predict(PromptTemplate("tell me about the {what}"), what="cat")
    chat = [{"role": "system", "content": "Be brief."}, ASK]
    assert said == guard.generate(chat, max_new_tokens=4).text


# --- sharing and saving ---------------------------------------------------------------------------


def test_two_policies_on_one_model_do_not_mix(guard_on):
    guard = guard_on()
    strict = GuardedVLM(guard=guard_on(FLAG), max_new_tokens=4)
    plain = GuardedVLM(guard=guard, max_new_tokens=4)
    wanted = guard.generate([ASK], max_new_tokens=4).text

    def one(i: int) -> str | None:
        llm = strict if i % 2 else plain
        return text_of(ask(llm, ("chat", "stream_chat")[i // 2 % 2], prompt_for("chat"))[-1])

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(one, range(24))) == [wanted, REFUSAL] * 12


def test_it_is_saved_without_its_guard_and_built_again_with_one(guard_on):
    guard = guard_on()
    llm = GuardedVLM(guard=guard, max_new_tokens=5, stop=("x",))
    saved = json.loads(llm.to_json())
    assert "guard" not in saved
    assert saved["class_name"] == "GuardedVLM"
    again = GuardedVLM.from_dict(saved, guard=guard)
    assert (again.guard, again.max_new_tokens, again.stop) == (guard, 5, ("x",))
    with pytest.raises(ValidationError, match="guard"):
        GuardedVLM.from_dict(saved)


def test_it_refuses_to_be_pickled_and_says_what_to_do(guard_on):
    with pytest.raises(ConfigurationError, match="from_dict"):
        pickle.dumps(GuardedVLM(guard=guard_on()))


def test_copies_share_the_guard(guard_on):
    llm = GuardedVLM(guard=guard_on(), max_new_tokens=3)
    copied = copy.deepcopy(llm)
    assert copied is not llm
    assert copied.guard is llm.guard
    assert text_of(copied.chat(prompt_for("chat"))) == text_of(llm.chat(prompt_for("chat")))


def test_only_a_guard_guards():
    with pytest.raises(ValidationError, match="guard"):
        GuardedVLM(guard=object())


def test_a_chat_leaves_its_messages_as_they_are(guard_on, png):
    chat, _ = chats(png)["tool results"]
    before = [message.model_dump() for message in chat]
    assert isinstance(GuardedVLM(guard=guard_on(), max_new_tokens=2).chat(chat), ChatResponse)
    assert [message.model_dump() for message in chat] == before
