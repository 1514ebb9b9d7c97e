"""LLMs that raise where a refusal has no place: where an object or a call must come."""

# No postponed annotations here: pydantic reads the fields' when the class is made.
import difflib
from collections.abc import AsyncGenerator, Collection, Generator, Iterable
from contextlib import aclosing, closing
from typing import Any, NoReturn, Self

from llama_index.core.base.llms.types import (
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
)
from llama_index.core.chat_engine.types import AgentChatResponse
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.types import Model
from pydantic import PrivateAttr

from guardrail.errors import ConfigurationError
from guardrail_llamaindex.calling import raise_refusal


class RaisingLLM(FunctionCallingLLM):
    """Raises a refusal where an object or a call must come, whatever the policy's `on_flag` is.

    LlamaIndex reads a refusal as text that cannot be parsed, in streams as an empty object, and
    where tools are called by text as no answer at all. A field `guard` is shared by copies.
    """

    # Set on copies alone, one for each request.
    _raises: bool = PrivateAttr(default=False)

    def __init__(self, **data: Any) -> None:
        refuse_unknown(type(self).__name__, data, type(self).model_fields)
        super().__init__(**data)

    def structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """An object as an answer.

        Raises:
            GuardrailViolation: the guard flagged the request.
            DetectorError: the detector failed, and the policy fails closed.
        """
        found: Model = FunctionCallingLLM.structured_predict(
            self._raising(), output_cls, prompt, llm_kwargs, **prompt_args
        )
        return found

    async def astructured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """`structured_predict` without blocking the event loop."""
        found: Model = await FunctionCallingLLM.astructured_predict(
            self._raising(), output_cls, prompt, llm_kwargs, **prompt_args
        )
        return found

    def stream_structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any]:
        """An object that grows; a refusal is raised before the first one."""
        return FunctionCallingLLM.stream_structured_predict(
            self._raising(), output_cls, prompt, llm_kwargs, **prompt_args
        )

    async def astream_structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any]:
        """`stream_structured_predict` for `async for`."""
        return await FunctionCallingLLM.astream_structured_predict(
            self._raising(), output_cls, prompt, llm_kwargs, **prompt_args
        )

    def chat_with_tools(self, *args: Any, **kwargs: Any) -> ChatResponse:
        """An answer that may call tools; `tool_required` raises a refusal."""
        return FunctionCallingLLM.chat_with_tools(
            self._raising(kwargs.get("tool_required", False)), *args, **kwargs
        )

    async def achat_with_tools(self, *args: Any, **kwargs: Any) -> ChatResponse:
        """`chat_with_tools` without blocking the event loop."""
        return await FunctionCallingLLM.achat_with_tools(
            self._raising(kwargs.get("tool_required", False)), *args, **kwargs
        )

    def stream_chat_with_tools(self, *args: Any, **kwargs: Any) -> ChatResponseGen:
        """`chat_with_tools` in chunks."""
        return FunctionCallingLLM.stream_chat_with_tools(
            self._raising(kwargs.get("tool_required", False)), *args, **kwargs
        )

    async def astream_chat_with_tools(self, *args: Any, **kwargs: Any) -> ChatResponseAsyncGen:
        """`stream_chat_with_tools` for `async for`."""
        return await FunctionCallingLLM.astream_chat_with_tools(
            self._raising(kwargs.get("tool_required", False)), *args, **kwargs
        )

    def predict_and_call(self, *args: Any, **kwargs: Any) -> AgentChatResponse:
        """Call the tools that an answer names; without `error_on_no_tool_call` it may be words."""
        return FunctionCallingLLM.predict_and_call(
            self._raising(kwargs.get("error_on_no_tool_call", True)), *args, **kwargs
        )

    async def apredict_and_call(self, *args: Any, **kwargs: Any) -> AgentChatResponse:
        """`predict_and_call` without blocking the event loop."""
        return await FunctionCallingLLM.apredict_and_call(
            self._raising(kwargs.get("error_on_no_tool_call", True)), *args, **kwargs
        )

    def __getstate__(self) -> NoReturn:
        """Refuse to be pickled: a copy would lose its guard."""
        name = type(self).__name__
        raise ConfigurationError(
            f"a {name} holds a live model and cannot be pickled; pass on `llm.to_dict()` and "
            f"build it again with `{name}.from_dict(data, guard=guard)`"
        )

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy that shares the guard."""
        memo = {} if memo is None else memo
        guard: Any = getattr(self, "guard", None)
        memo[id(guard)] = guard
        return super().__deepcopy__(memo)

    def _raising(self, needed: bool = True) -> Self:
        if not needed or self._raises:
            return self
        copied = self.model_copy()
        copied._raises = True
        return copied


def refuse_unknown(owner: str, given: Iterable[str], known: Collection[str]) -> None:
    """Refuse keywords that nobody reads, and say which one may be meant.

    Raises:
        ConfigurationError: there is one.
    """
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            meant = f" (do you mean {near[0]!r}?)" if near else ""
            raise ConfigurationError(
                f"{name!r} is no setting of {owner}{meant}; known: {', '.join(known)}"
            )


def unrefused(chunks: Generator[ChatResponse]) -> Generator[ChatResponse]:
    """The same chunks, each one late: only the one after a refusal's words says what they are."""
    held: ChatResponse | None = None
    with closing(chunks):
        for chunk in chunks:
            raise_refusal(chunk.raw)
            if held is not None:
                yield held
            held = chunk
    if held is not None:
        yield held


async def aunrefused(chunks: AsyncGenerator[ChatResponse]) -> AsyncGenerator[ChatResponse]:
    """`unrefused` for `async for`."""
    held: ChatResponse | None = None
    async with aclosing(chunks):
        async for chunk in chunks:
            raise_refusal(chunk.raw)
            if held is not None:
                yield held
            held = chunk
    if held is not None:
        yield held
