"""Somebody else's LLM for LlamaIndex, and a LlamaIndex that is left as it was."""

from __future__ import annotations

import asyncio
import json
import re
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import llama_index.core
from llama_index.core import Settings
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LLMMetadata,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from pydantic import Field

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

# Of LlamaIndex's own: it looks at every attribute of an agent, and at `is_running` inside a step.
WARNINGS = (
    "ignore:The `__fields:pydantic.PydanticDeprecatedSince20",
    "ignore:Accessing the 'model_:pydantic.PydanticDeprecatedSince211",
    "ignore:is_running called from within a step:DeprecationWarning",
)


@contextmanager
def llama_index_as_it_was() -> Iterator[None]:
    """A tokenizer that needs no download, and LlamaIndex's globals put back afterwards."""
    settings, tokenizer = dict(vars(Settings)), llama_index.core.global_tokenizer
    llama_index.core.global_tokenizer = lambda text: re.findall(r"\w+|\W", text)
    try:
        yield
    finally:
        vars(Settings).clear()
        vars(Settings).update(settings)
        llama_index.core.global_tokenizer = tokenizer


async def in_a_thread(ask: Callable[[Any], Any], llm: Any) -> Any:
    """What is asked in a thread with a loop of its own, which LlamaIndex would leave open."""

    def asked() -> Any:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            return ask(llm)
        finally:
            asyncio.set_event_loop(None)
            loop.close()

    with llama_index_as_it_was(), warnings.catch_warnings():
        for each in WARNINGS:
            _, message, _ = each.split(":")
            warnings.filterwarnings("ignore", message)
        return await asyncio.to_thread(asked)


class OtherLLM(FunctionCallingLLM):
    """Somebody else's LLM: keeps what it is sent, and answers from a script.

    `script(messages, **keywords)` gives a text, or the name of a tool and its arguments; messages
    are a str where a prompt is to be completed.
    """

    script: Any = None
    functions: bool = True
    chats: bool = True
    additional_kwargs: dict[str, Any] = Field(default_factory=dict)
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
        self.seen.append((messages, {**self.additional_kwargs, **kwargs}))
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
