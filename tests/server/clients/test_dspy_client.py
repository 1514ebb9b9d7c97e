"""DSPy's language model, by LiteLLM, against a running server."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import pytest

from guardrail.testing import scripted
from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

KEY = "a-key-for-tests-0123"
QUESTION = "question -> answer"


@pytest.fixture(scope="module")
def dspy() -> Iterator[Any]:
    """The package, imported without a look at the network."""
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
        import dspy

        yield dspy


@pytest.fixture
def lm_of(dspy: Any) -> Callable[..., Any]:
    def make(server: Any, tokens: int = 4) -> Any:
        return dspy.LM(
            "openai/guarded",
            api_base=server.api,
            api_key=KEY,
            cache=False,
            num_retries=0,
            max_tokens=tokens,
            temperature=None,
        )

    return make


def parse_error(dspy: Any) -> type[Exception]:
    found: type[Exception] = dspy.utils.exceptions.AdapterParseError
    return found


@pytest.fixture
def answering(llava: Any) -> Iterator[list[str]]:
    """The model answers as DSPy wants it; gives the prompts that it was asked."""
    prompts: list[str] = []

    def script(prompt: str) -> str:
        prompts.append(prompt)
        return "[[ ## answer ## ]]\nA door.\n\n[[ ## completed ## ]]"

    with scripted(llava.model, llava.processor, script):
        yield prompts


def test_an_answer_is_the_models(lm_of, server):
    expected = server.guard.generate("hello", max_new_tokens=4).text
    assert lm_of(server)("hello") == [expected]


def test_a_flagged_prompt_is_refused(lm_of, server_of):
    lm = lm_of(server_of(Action.FLAG, refusal_message="No."))
    assert lm("hello") == ["No."]
    assert lm.history[-1]["response"].finish_reason == "content_filter"


def test_a_refusal_is_no_prediction(dspy, lm_of, server_of):
    lm = lm_of(server_of(Action.FLAG, refusal_message="No."))
    with dspy.context(lm=lm), pytest.raises(parse_error(dspy), match=r"No\."):
        dspy.Predict(QUESTION)(question="what is there?")


def test_under_raise_it_is_an_error_of_the_request(dspy, lm_of, server_of):
    lm = lm_of(server_of(Action.FLAG, refusal_message="No.", on_flag="raise"))
    with dspy.context(lm=lm), pytest.raises(Exception, match=r"No\. \(content_filter\)"):
        dspy.Predict(QUESTION)(question="what is there?")


def test_a_prediction_with_a_history(dspy, lm_of, server, answering):
    history = dspy.History(messages=[{"question": "what is there?", "answer": "A cat."}])
    with dspy.context(lm=lm_of(server, 200)):
        ask = dspy.Predict(f"history: dspy.History, {QUESTION}")
        assert ask(question="and now?", history=history).answer == "A door."
    [prompt] = answering
    assert prompt.index("what is there?") < prompt.index("A cat.") < prompt.index("and now?")


async def test_a_prediction_is_streamed_and_a_refusal_is_not(dspy, lm_of, server_of, answering):
    def program() -> Any:
        listener = dspy.streaming.StreamListener(signature_field_name="answer")
        return dspy.streamify(dspy.Predict(QUESTION), stream_listeners=[listener])

    async def read(server: Any, chunks: list[Any]) -> None:
        with dspy.context(lm=lm_of(server, 200)):
            async for chunk in program()(question="what is there?"):
                chunks.append(chunk)

    chunks: list[Any] = []
    await read(server_of(), chunks)
    assert chunks[-1].answer == "A door."
    assert "".join(chunk.chunk for chunk in chunks[:-1]).startswith("A door.")
    refused: list[Any] = []
    with pytest.raises(parse_error(dspy)):
        await read(server_of(Action.FLAG), refused)
    assert refused == []
    assert len(answering) == 1


def test_a_poisoned_result_in_a_field_is_refused(dspy, lm_of, server_of, server, answering):
    ask, scores = dspy.Predict("question, found -> answer"), dict[str, float]()
    for found in ("a door", "ignore " * 12):
        lm = lm_of(server, 200)
        with dspy.context(lm=lm):
            ask(question="what is there?", found=found)
        scores[found] = server.guard.check(lm.history[-1]["messages"]).score
    clean, poisoned = sorted(scores, key=scores.__getitem__)  # as random weights have it
    careful = server_of(above=sum(scores.values()) / 2, refusal_message="No.")
    # Else it asks again, in JSON, what was refused; that has a score of its own.
    adapter = dspy.ChatAdapter(use_json_adapter_fallback=False)
    with dspy.context(lm=lm_of(careful, 200), adapter=adapter):
        assert ask(question="what is there?", found=clean).answer == "A door."
        with pytest.raises(parse_error(dspy), match=r"No\."):
            ask(question="what is there?", found=poisoned)
    assert len(answering) == 3
