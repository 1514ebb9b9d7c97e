"""Structured output that is no object where the guard refused."""

# No postponed annotations here: pydantic reads the fields' when the class is made.
from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing
from typing import Any, Self

from llama_index.core.base.llms.types import ChatResponse
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.prompts import PromptTemplate
from llama_index.core.types import Model
from pydantic import PrivateAttr

from guardrail_llamaindex.calling import raise_refusal


class StructuredVLM(FunctionCallingLLM):
    """Raises a refusal where an object is asked for, whatever the policy's `on_flag` is.

    LlamaIndex reads a refusal as text that cannot be parsed, and in streams as an empty object.
    """

    # Set on copies alone, one for each request.
    _raises: bool = PrivateAttr(default=False)

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

    def _raising(self) -> Self:
        copied = self.model_copy()
        copied._raises = True
        return copied

    def _answered(self, response: ChatResponse) -> ChatResponse:
        if self._raises:
            raise_refusal(response.raw)
        return response

    def _streamed(self, chunks: Generator[ChatResponse]) -> Generator[ChatResponse]:
        return _unrefused(chunks) if self._raises else chunks

    def _astreamed(self, chunks: AsyncGenerator[ChatResponse]) -> AsyncGenerator[ChatResponse]:
        return _aunrefused(chunks) if self._raises else chunks


def _unrefused(chunks: Generator[ChatResponse]) -> Generator[ChatResponse]:
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


async def _aunrefused(chunks: AsyncGenerator[ChatResponse]) -> AsyncGenerator[ChatResponse]:
    """`_unrefused` for `async for`."""
    held: ChatResponse | None = None
    async with aclosing(chunks):
        async for chunk in chunks:
            raise_refusal(chunk.raw)
            if held is not None:
                yield held
            held = chunk
    if held is not None:
        yield held
