"""What catches errors in order to go on all the same: none of it answers a flagged request."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from guardrail_llamaindex import GuardedLLM, GuardedVLM, GuardrailNodePostprocessor
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.async_utils import run_async_tasks, run_jobs
from llama_index.core.base.base_query_engine import BaseQueryEngine
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.base.response.schema import Response
from llama_index.core.chat_engine import (
    CondensePlusContextChatEngine,
    CondenseQuestionChatEngine,
    ContextChatEngine,
    SimpleChatEngine,
)
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.evaluation import BaseEvaluator, EvaluationResult
from llama_index.core.extractors import TitleExtractor
from llama_index.core.indices.query.query_transform import HyDEQueryTransform
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.output_parsers import PydanticOutputParser
from llama_index.core.program import FunctionCallingProgram, LLMTextCompletionProgram
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import (
    RetryQueryEngine,
    RouterQueryEngine,
    SubQuestionQueryEngine,
    TransformQueryEngine,
)
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.response_synthesizers import ResponseMode
from llama_index.core.schema import TextNode
from llama_index.core.selectors import LLMSingleSelector
from llama_index.core.tools import FunctionTool, QueryEngineTool
from llama_index.core.tools.calling import acall_tool, call_tool
from pydantic import BaseModel

from guardrail.errors import GuardrailViolation
from guardrail.policy import REFUSAL
from guardrail.testing import FakeGuard
from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import Iterator

WAYS = ("sync", "async")
every_way = pytest.mark.parametrize("way", WAYS)


class Animal(BaseModel):
    """An animal."""

    name: str


class Asking(BaseQueryEngine):
    """Asks an LLM."""

    def __init__(self, llm: Any) -> None:
        super().__init__(None)
        self.llm = llm

    def _get_prompt_modules(self) -> Any:
        return {}

    def _query(self, query_bundle: Any) -> Response:
        return Response(self.llm.complete(query_bundle.query_str).text)

    async def _aquery(self, query_bundle: Any) -> Response:
        return Response((await self.llm.acomplete(query_bundle.query_str)).text)


@pytest.fixture(autouse=True)
def closed_loop() -> Iterator[None]:
    """A loop for LlamaIndex to find, which would make one and leave it open."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


@pytest.fixture
def inner(other_llm: Any) -> Any:
    return other_llm()


@pytest.fixture
def llm(inner: Any) -> GuardedLLM:
    return GuardedLLM(llm=inner, guard=FakeGuard(), on_flag="raise")


def index(llm: Any, text: str = "a cat") -> VectorStoreIndex:
    return VectorStoreIndex([TextNode(text=text)], embed_model=MockEmbedding(embed_dim=2))


def query(engine: Any, way: str, words: str = "bad") -> Any:
    return engine.query(words) if way == "sync" else asyncio.run(engine.aquery(words))


@every_way
@pytest.mark.parametrize("mode", list(ResponseMode))
def test_no_response_synthesizer_goes_on(llm, inner, way, mode):
    if mode in (ResponseMode.NO_TEXT, ResponseMode.CONTEXT_ONLY):
        pytest.skip("it asks no LLM")
    engine = index(llm).as_query_engine(llm=llm, response_mode=mode)
    with pytest.raises(GuardrailViolation):
        query(engine, way)
    assert inner.seen == []


@every_way
def test_a_router_does_not_take_another_engine(llm, inner, way):
    tools = [QueryEngineTool.from_defaults(Asking(llm=llm), name=n, description=n) for n in "ab"]
    engine = RouterQueryEngine(
        LLMSingleSelector.from_defaults(llm=llm), tools, summarizer=None, llm=llm
    )
    with pytest.raises(GuardrailViolation):
        query(engine, way)
    assert inner.seen == []


@every_way
def test_a_sub_questions_violation_is_no_missing_answer(llm, other_llm, way):
    # The engine logs errors of sub-questions, and answers from the others.
    asks = '```json\n{"items": [{"sub_question": "bad", "tool_name": "a"}]}\n```'
    planner = other_llm(script=lambda *_, **__: asks)
    tool = QueryEngineTool.from_defaults(Asking(llm=llm), name="a", description="a")
    engine = SubQuestionQueryEngine.from_defaults(
        [tool],
        llm=planner,
        question_gen=LLMQuestionGenerator.from_defaults(llm=planner),
        use_async=way == "async",
        verbose=False,
    )
    with pytest.raises(GuardrailViolation):
        query(engine, way, "hi")
    assert len(planner.seen) == 1


@every_way
def test_a_retried_query_is_not_asked_again(llm, inner, way):
    class Never(BaseEvaluator):
        def _get_prompts(self) -> Any:
            return {}

        def _update_prompts(self, prompts: Any) -> None: ...

        async def aevaluate(self, *args: Any, **kwargs: Any) -> EvaluationResult:
            return EvaluationResult(passing=False, feedback="again")

    with pytest.raises(GuardrailViolation):
        query(RetryQueryEngine(Asking(llm=llm), Never(), max_retries=3), way)
    assert inner.seen == []


@every_way
def test_a_query_transform_raises(llm, inner, way):
    engine = TransformQueryEngine(Asking(llm=inner), HyDEQueryTransform(llm=llm))
    with pytest.raises(GuardrailViolation):
        query(engine, way)
    assert inner.seen == []


@every_way
@pytest.mark.parametrize("kind", ["function", "query engine"])
def test_a_tool_makes_no_error_output_of_it(llm, inner, way, kind):
    def ask(input: str) -> str:
        """Ask."""
        return llm.complete(input).text

    async def aask(input: str) -> str:
        return (await llm.acomplete(input)).text

    tool = {
        "function": FunctionTool.from_defaults(ask, async_fn=aask),
        "query engine": QueryEngineTool.from_defaults(Asking(llm=llm), name="a", description="a"),
    }[kind]
    calls = {
        "sync": lambda: call_tool(tool, {"input": "bad"}),
        "async": lambda: asyncio.run(acall_tool(tool, {"input": "bad"})),
    }
    with pytest.raises(GuardrailViolation):
        calls[way]()
    assert inner.seen == []


@every_way
@pytest.mark.parametrize("kind", ["text", "function"])
def test_a_program_does_not_parse_it(llm, inner, way, kind):
    made = {
        "text": lambda: LLMTextCompletionProgram.from_defaults(
            output_parser=PydanticOutputParser(Animal), prompt_template_str="{q}", llm=llm
        ),
        "function": lambda: FunctionCallingProgram.from_defaults(
            Animal, prompt_template_str="{q}", llm=llm
        ),
    }[kind]()
    with pytest.raises(GuardrailViolation):
        made(q="bad") if way == "sync" else asyncio.run(made.acall(q="bad"))
    assert inner.seen == []


@pytest.mark.parametrize("kind", ["text", "function"])
def test_a_stream_of_objects_does_not_skip_it(llm, inner, kind):
    # LlamaIndex goes on with the next chunk where one cannot be parsed.
    inner.functions = kind == "function"
    stream = llm.stream_structured_predict(Animal, PromptTemplate("{q}"), q="bad")
    try:
        with pytest.raises(GuardrailViolation):
            next(stream)
    except NotImplementedError:
        pytest.skip("this LlamaIndex streams no structured output as text")
    assert inner.seen == []


@every_way
def test_an_ingestion_does_not_retry(llm, inner, way):
    extractor = TitleExtractor(llm=llm, nodes=1)
    pipeline = IngestionPipeline(transformations=[extractor])
    documents = [Document(text="bad")]
    runs = {
        "sync": lambda: pipeline.run(documents=documents),
        "async": lambda: asyncio.run(pipeline.arun(documents=documents)),
    }
    if hasattr(extractor, "raise_on_error"):
        extractor.max_retries, extractor.raise_on_error = 2, False
    with pytest.raises(GuardrailViolation):
        runs[way]()
    assert inner.seen == []


@pytest.mark.parametrize("workers", [1, 4])
def test_jobs_of_many_end_with_it(llm, inner, workers):
    async def run() -> None:
        await run_jobs([llm.acomplete(words) for words in ("bad", "hi")], workers=workers)

    with pytest.raises(GuardrailViolation):
        asyncio.run(run())
    with pytest.raises(GuardrailViolation):
        run_async_tasks([llm.acomplete("bad")])
    assert "bad" not in inner.said()


@every_way
def test_a_raising_postprocessor_ends_the_query(inner, way):
    engine = index(inner, "bad").as_query_engine(
        llm=inner,
        node_postprocessors=[GuardrailNodePostprocessor(guard=FakeGuard(), action="raise")],
    )
    with pytest.raises(GuardrailViolation):
        query(engine, way, "hi")
    assert inner.seen == []


# --- chat engines, which read streams in threads and tasks of their own ---------------------------


def engine_of(kind: str, llm: Any, history: Any = None) -> Any:
    memory = ChatMemoryBuffer.from_defaults(chat_history=history or [])
    made = {
        "simple": lambda: SimpleChatEngine.from_defaults(llm=llm, memory=memory),
        "context": lambda: ContextChatEngine.from_defaults(
            index(llm).as_retriever(), llm=llm, memory=memory
        ),
        "condense plus context": lambda: CondensePlusContextChatEngine.from_defaults(
            index(llm).as_retriever(), llm=llm, memory=memory
        ),
        "condense question": lambda: CondenseQuestionChatEngine.from_defaults(
            index(llm).as_query_engine(llm=llm, streaming=True), llm=llm, memory=memory
        ),
    }
    return made[kind]()


def chatted(engine: Any, method: str, words: str = "bad") -> str:
    """All that an engine answers."""

    async def awaited() -> str:
        async with asyncio.timeout(20):  # of a stream that never ends
            answer = await getattr(engine, method)(words)
            if method == "achat":
                return str(answer)
            return "".join([delta async for delta in answer.async_response_gen()])

    if method.startswith("a"):
        return asyncio.run(awaited())
    answer = getattr(engine, method)(words)
    return str(answer) if method == "chat" else "".join(answer.response_gen)


ENGINES = ("simple", "context", "condense plus context", "condense question")
every_engine = pytest.mark.parametrize("kind", ENGINES)
every_chat = pytest.mark.parametrize("method", ["chat", "achat", "stream_chat", "astream_chat"])
# As every error does there: the thread that writes a stream ends in it, too.
in_threads = pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")


@in_threads
@every_engine
@every_chat
def test_a_chat_engine_raises_and_waits_for_nothing(llm, inner, kind, method):
    with pytest.raises(GuardrailViolation):
        chatted(engine_of(kind, llm), method)
    assert inner.seen == []


@in_threads
@every_chat
def test_so_does_one_with_the_guards_own_model(guard_on, method):
    guard = guard_on(Action.FLAG, on_flag="raise")
    with pytest.raises(GuardrailViolation):
        chatted(engine_of("simple", GuardedVLM(guard=guard)), method)


@every_engine
@every_chat
def test_every_chat_engine_says_the_refusal(inner, kind, method):
    engine = engine_of(kind, GuardedLLM(llm=inner, guard=FakeGuard()))
    assert chatted(engine, method) == REFUSAL
    assert inner.seen == []


def test_what_is_in_an_engines_memory_is_judged_every_time(inner):
    history = [ChatMessage("bad"), ChatMessage("fine", role="assistant")]
    engine = engine_of("simple", GuardedLLM(llm=inner, guard=FakeGuard()), history)
    assert chatted(engine, "chat", "hi") == REFUSAL
    engine.reset()
    assert chatted(engine, "chat", "hi") == "fine"
