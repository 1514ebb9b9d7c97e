"""Any LLM of LlamaIndex behind a guard."""

# No postponed annotations here: pydantic reads the fields' when the class is made.
from collections.abc import AsyncGenerator, AsyncIterable, Generator, Iterable, Sequence
from functools import partial
from typing import Any, TypeVar

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
)
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import LLM, ToolSelection
from pydantic import Field, PrivateAttr, SkipValidation

from guardrail.audit import Audit
from guardrail.errors import ConfigurationError
from guardrail.front.consequences import Checker, OnFlag, Reaction, Settled
from guardrail.front.judging import Judge
from guardrail.inputs.threads import read_apart
from guardrail.policy.acting import stopped
from guardrail.types import Verdict
from guardrail_llamaindex.judging import LLMCall
from guardrail_llamaindex.llm import RaisingLLM
from guardrail_llamaindex.replies import as_completion, is_refusal, raise_refusal, refusal, told

R = TypeVar("R", ChatResponse, CompletionResponse)

# What LlamaIndex applies outside of an LLM's own methods: here, where it is judged.
_TAKEN_OVER = (
    "system_prompt",
    "query_wrapper_prompt",
    "messages_to_prompt",
    "completion_to_prompt",
    "output_parser",
    "pydantic_program_mode",
)


class GuardedLLM(RaisingLLM):
    """Any other LLM, with everything it is about to read judged first.

        llm = GuardedLLM(llm=OpenAI("gpt-4.1"), guard=guard)
        agent = FunctionAgent(llm=llm, tools=tools)

    Judged are all messages of a request (system prompts, memory, tool calls and results, pictures),
    prompts, the schemas of tools and outputs, and every other keyword with words in it: what is
    said as one chat, what comes beside it piece by piece, once for as long as it stays the same.
    The highest verdict counts. Pictures go on in the form that was judged.

    A flagged request gets the policy's refusal message, or raises `GuardrailViolation`; where an
    object or a call must come it raises always. Nothing is sent before the verdict, nor a stream
    begun. Another LLM cannot be steered: the policy's `unsteerable` says what happens instead, and
    a caution goes into the system message. The verdict is in a response's `additional_kwargs`, and
    in its `raw` where that is a dict.

    It calls functions if the LLM does. The system prompt, output parser and prompt functions of the
    LLM are taken over. Other settings are the LLM's own. Guard and LLM are not serialised: build a
    saved one again with `GuardedLLM.from_dict(data, llm=llm, guard=guard)`.
    """

    llm: SkipValidation[LLM] = Field(exclude=True, repr=False)
    guard: SkipValidation[Checker] = Field(exclude=True, repr=False)
    on_flag: OnFlag | None = None
    audit: SkipValidation[Audit] | None = Field(default=None, exclude=True, repr=False)

    _judge: Judge = PrivateAttr()

    def __init__(self, **data: Any) -> None:
        inner = data.get("llm")
        if not isinstance(inner, LLM):
            raise ConfigurationError(f"GuardedLLM needs an LLM of LlamaIndex as llm, not {inner!r}")
        super().__init__(**{name: getattr(inner, name) for name in _TAKEN_OVER} | data)
        self._judge = Judge(Reaction(self.guard, self.on_flag, self.audit))

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex saves it."""
        return "GuardedLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """The LLM's own."""
        return self.llm.metadata

    # No callbacks here: the LLM's own are told when it is called, and only then.

    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Judge a chat, and have it answered.

        Raises:
            InputError: something in it that a guard cannot read.
            GuardrailViolation: it was flagged, and the rules say `on_flag = "raise"`.
        """
        after, call = self._settled(messages, kwargs)
        if after.done == "flag":
            return self._refusal(after)
        return told(self.llm.chat(call.sent, **call.kwargs), after.verdict)

    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """`chat` without blocking the event loop."""
        after, call = await self._asettled(messages, kwargs)
        if after.done == "flag":
            return self._refusal(after)
        return told(await self.llm.achat(call.sent, **call.kwargs), after.verdict)

    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """`chat` in chunks; this call waits for the verdict."""
        after, call = self._settled(messages, kwargs)
        if after.done == "flag":
            return _each([self._refusal(after)], after)
        return _each(self.llm.stream_chat(call.sent, **call.kwargs), after)

    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """`stream_chat` for `async for`."""
        after, call = await self._asettled(messages, kwargs)
        if after.done == "flag":
            return _aeach(_alone(self._refusal(after)), after)
        return _aeach(await self.llm.astream_chat(call.sent, **call.kwargs), after)

    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Judge a prompt, and have it answered; pictures are `image_documents`."""
        after, call = self._settled(prompt, kwargs)
        if after.done == "flag":
            return as_completion(self._refusal(after))
        answer = self.llm.complete(call.sent, formatted=formatted, **call.kwargs)
        return told(answer, after.verdict)

    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """`complete` without blocking the event loop."""
        after, call = await self._asettled(prompt, kwargs)
        if after.done == "flag":
            return as_completion(self._refusal(after))
        answer = await self.llm.acomplete(call.sent, formatted=formatted, **call.kwargs)
        return told(answer, after.verdict)

    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """`complete` in chunks; this call waits for the verdict."""
        after, call = self._settled(prompt, kwargs)
        if after.done == "flag":
            return _each([as_completion(self._refusal(after))], after)
        answer = self.llm.stream_complete(call.sent, formatted=formatted, **call.kwargs)
        return _each(answer, after)

    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """`stream_complete` for `async for`."""
        after, call = await self._asettled(prompt, kwargs)
        if after.done == "flag":
            return _aeach(_alone(as_completion(self._refusal(after))), after)
        answer = await self.llm.astream_complete(call.sent, formatted=formatted, **call.kwargs)
        return _aeach(answer, after)

    def _prepare_chat_with_tools(
        self, tools: Any, *args: Any, tool_required: bool = False, **kwargs: Any
    ) -> dict[str, Any]:
        # LlamaIndex hands `tool_required` on only where it stands in the signature.
        kwargs["tool_required"] = tool_required
        return self._calling._prepare_chat_with_tools_compat(tools, *args, **kwargs)

    def _validate_chat_with_tools_response(self, *args: Any, **kwargs: Any) -> ChatResponse:
        return self._calling._validate_chat_with_tools_response(*args, **kwargs)

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls of an answer; none where the guard refused the request.

        Raises:
            GuardrailViolation: there is none for that reason, and `error_on_no_tool_call` is set.
        """
        if is_refusal(response.raw):
            if error_on_no_tool_call:
                raise_refusal(response.raw)
            return []
        return self._calling.get_tool_calls_from_response(
            response, error_on_no_tool_call=error_on_no_tool_call, **kwargs
        )

    @property
    def _calling(self) -> FunctionCallingLLM:
        if not isinstance(self.llm, FunctionCallingLLM):
            raise ConfigurationError(
                f"{type(self.llm).__name__} calls no functions; use a ReActAgent, or another LLM"
            )
        return self.llm

    def _settled(self, given: Any, kwargs: dict[str, Any]) -> tuple[Settled, LLMCall]:
        call = LLMCall.of(given, kwargs, self.llm, self.guard.policy)
        return self._ruled(call, self._judge.verdict(call.heard))

    async def _asettled(self, given: Any, kwargs: dict[str, Any]) -> tuple[Settled, LLMCall]:
        # Pictures are read and written there.
        call = await read_apart(partial(LLMCall.of, given, kwargs, self.llm, self.guard.policy))
        return self._ruled(call, await self._judge.averdict(call.heard))

    def _ruled(self, call: LLMCall, verdict: Verdict) -> tuple[Settled, LLMCall]:
        role = self.metadata.system_role
        after = self._judge.settle(verdict, lambda words: call.cautioned(words, role))
        if after.done == "flag":
            if self._raises:
                raise stopped(after.verdict)
            self._judge.reaction.stop(after.verdict)
        return after, after.cautioned or call

    def _refusal(self, after: Settled) -> ChatResponse:
        return refusal(self.guard.policy.refusal_message, after.verdict)


def _each(answers: Iterable[R], after: Settled) -> Generator[R]:
    for answer in answers:
        yield told(answer, after.verdict)


async def _aeach(answers: AsyncIterable[R], after: Settled) -> AsyncGenerator[R]:
    async for answer in answers:
        yield told(answer, after.verdict)


async def _alone(answer: R) -> AsyncGenerator[R]:
    yield answer
