"""Guards on the tiny model, doubles that know words, and a LlamaIndex that is left as it was."""

from __future__ import annotations

import io
import json
import re
from typing import TYPE_CHECKING, Any

import llama_index.core
import pytest
from llama_index.core import Settings
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LLMMetadata,
)
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from pydantic import Field

from guardrail.guard import Guard
from guardrail.policy import Policy, Thresholds
from guardrail.testing import FakeGuard, tiny_artefact, tiny_model
from guardrail.types import Action, Modality, Verdict
from tests.waiting import passes_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from PIL import Image

    from tests.waiting import Passes

FAR = 1e9
FORCED = {
    Action.PASS: Thresholds(steer=FAR, flag=FAR),
    Action.STEER: Thresholds(steer=-FAR, flag=FAR),
    Action.FLAG: Thresholds(steer=-FAR, flag=-FAR),
}


@pytest.fixture(autouse=True)
def llama_index_as_it_was() -> Iterator[None]:
    """A tokenizer that needs no download, and LlamaIndex's globals put back afterwards."""
    settings, tokenizer = dict(vars(Settings)), llama_index.core.global_tokenizer
    llama_index.core.global_tokenizer = lambda text: re.findall(r"\w+|\W", text)
    yield
    vars(Settings).clear()
    vars(Settings).update(settings)
    llama_index.core.global_tokenizer = tokenizer


class Recorder(BaseEventHandler):
    """Keeps every event that LlamaIndex tells about."""

    seen: list[Any] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Recorder"

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.seen.append(event)

    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.seen]


@pytest.fixture
def events() -> Iterator[Recorder]:
    root, recorder = get_dispatcher(), Recorder()
    root.add_event_handler(recorder)
    yield recorder
    root.event_handlers.remove(recorder)


@pytest.fixture
def guard_on(llava: Any) -> Iterator[Callable[..., Guard]]:
    """`guard_on(Action.FLAG, on_flag="raise")`: on the tiny model, with no choice of action."""
    guards: list[Guard] = []

    def make(action: Action = Action.PASS, *, audit: Any = None, **policy: Any) -> Guard:
        policy.setdefault("thresholds", dict.fromkeys(Modality, FORCED[action]))
        policy["thresholds"].pop(Modality.VIDEO, None)
        artefact = tiny_artefact(llava.model, llava.processor)
        guard = Guard(
            (llava.model, llava.processor), artefact, policy=Policy(**policy), audit=audit
        )
        guards.append(guard)
        return guard

    yield make
    for guard in guards:
        guard.close()


@pytest.fixture
def png(picture: Callable[..., Image.Image]) -> Callable[..., bytes]:
    def make(seed: int = 0) -> bytes:
        file = io.BytesIO()
        picture(seed).save(file, "PNG")
        return file.getvalue()

    return make


class WordGuard(FakeGuard):
    """Flags what holds the word bad (or another, such as a picture), steers what holds odd."""

    def __init__(self, policy: Policy | None = None, flag: str = "bad", steer: str = "odd") -> None:
        super().__init__([flag], [steer], policy=policy)

    def check(self, value: Any, /, **options: Any) -> Verdict:
        super().check(value, **options)  # refuses what a guard refuses
        verdict = super().check(repr(value), **options)  # with paths and base64 as words
        self.seen.pop()
        return verdict

    def check_batch(self, values: Any, *, return_exceptions: bool = False) -> list[Any]:
        return [self.check(value) for value in values]


@pytest.fixture
def word_guard() -> type[WordGuard]:
    return WordGuard


class OtherLLM(FunctionCallingLLM):
    """Somebody else's LLM: keeps what it is sent, and answers from a script.

    `script(messages, **keywords)` gives a text, or the name of a tool and its arguments; messages
    are a str where a prompt is to be completed.
    """

    script: Any = None
    functions: bool = True
    chats: bool = True
    seen: list[Any] = Field(default_factory=list)

    @property
    def metadata(self) -> LLMMetadata:
        return LLMMetadata(
            is_function_calling_model=self.functions, is_chat_model=self.chats, model_name="other"
        )

    def said(self) -> str:
        """All that it was sent so far."""
        return "\n".join(map(repr, self.seen))

    def _message(self, messages: Any, kwargs: Any) -> ChatMessage:
        self.seen.append((messages, kwargs))
        answer = "fine" if self.script is None else self.script(messages, **kwargs)
        if isinstance(answer, str):
            return ChatMessage(answer, role="assistant")
        call = {"name": answer[0], "arguments": json.dumps(answer[1])}
        calls = [{"id": "c1", "type": "function", "function": call}]
        return ChatMessage("", role="assistant", additional_kwargs={"tool_calls": calls})

    @llm_chat_callback()
    def chat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        return ChatResponse(message=self._message(messages, kwargs), raw={"model": "other"})

    @llm_chat_callback()
    async def achat(self, messages: Any, **kwargs: Any) -> ChatResponse:
        return ChatResponse(message=self._message(messages, kwargs), raw={"model": "other"})

    @llm_chat_callback()
    def stream_chat(self, messages: Any, **kwargs: Any) -> Any:
        message = self._message(messages, kwargs)
        return iter_of(ChatResponse(message=message, delta=message.content, raw={}))

    @llm_chat_callback()
    async def astream_chat(self, messages: Any, **kwargs: Any) -> Any:
        message = self._message(messages, kwargs)
        return aiter_of(ChatResponse(message=message, delta=message.content, raw={}))

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        return CompletionResponse(text=self._message(prompt, kwargs).content or "")

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        return CompletionResponse(text=self._message(prompt, kwargs).content or "")

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        text = self._message(prompt, kwargs).content or ""
        return iter_of(CompletionResponse(text=text, delta=text))

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> Any:
        text = self._message(prompt, kwargs).content or ""
        return aiter_of(CompletionResponse(text=text, delta=text))

    def _prepare_chat_with_tools(
        self, tools: Any, user_msg: Any = None, chat_history: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        said = ChatMessage(user_msg) if isinstance(user_msg, str) else user_msg
        messages = [*(chat_history or ()), *(() if said is None else (said,))]
        schemas = [tool.metadata.to_openai_tool() for tool in tools]
        return {"messages": messages, "tools": schemas, "tool_choice": "auto"}

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        calls = response.message.additional_kwargs.get("tool_calls", [])
        if not calls and error_on_no_tool_call:
            raise ValueError("no call")
        return [
            ToolSelection(
                tool_id=call["id"],
                tool_name=call["function"]["name"],
                tool_kwargs=json.loads(call["function"]["arguments"]),
            )
            for call in calls
        ]


def iter_of(*items: Any) -> Iterator[Any]:
    yield from items


async def aiter_of(*items: Any) -> AsyncIterator[Any]:
    for item in items:
        yield item


@pytest.fixture
def other_llm() -> type[OtherLLM]:
    return OtherLLM


@pytest.fixture
def passes(llava: Any) -> Iterator[Passes]:
    """The model's forward passes, counted, and held where the test says so."""
    with passes_of(llava.model) as passes:
        yield passes


@pytest.fixture
def toolless() -> Iterator[Any]:
    """Model, processor and guard of a model whose chat template knows no tools."""
    model, processor = tiny_model("llava")
    start, end = (processor.chat_template.index(word) for word in ("{%- if tools", "{%- for mess"))
    processor.chat_template = processor.chat_template[:start] + processor.chat_template[end:]
    thresholds = dict.fromkeys((Modality.TEXT, Modality.IMAGE), FORCED[Action.PASS])
    artefact = tiny_artefact(model, processor)
    with Guard((model, processor), artefact, policy=Policy(thresholds=thresholds)) as guard:
        yield model, processor, guard
