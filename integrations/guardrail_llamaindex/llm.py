"""A guarded model as a LlamaIndex LLM.

`RaisingLLM` is what it has in common with another LLM behind a guard: a refusal is raised where it
has no place, since an object or a call must come.
"""

# No postponed annotations here: pydantic reads the fields' when the class is made.
import difflib
import functools
import inspect
from collections.abc import (
    AsyncGenerator,
    Callable,
    Collection,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing, closing
from typing import Any, ClassVar, NamedTuple, NoReturn, Self, TypeVar, cast

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
from llama_index.core.constants import DEFAULT_CONTEXT_WINDOW
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import ToolSelection
from llama_index.core.program.llm_program import LLMTextCompletionProgram
from llama_index.core.tools import BaseTool
from llama_index.core.types import BasePydanticProgram, PydanticProgramMode
from pydantic import BaseModel, Field, PrivateAttr

from guardrail.errors import ConfigurationError
from guardrail.guard import Guard
from guardrail.inputs.tools import closed
from guardrail.model.settings import Settings
from guardrail_llamaindex import replies
from guardrail_llamaindex.messages import document_parts, to_messages
from guardrail_llamaindex.replies import raise_refusal

F = TypeVar("F", bound=Callable[..., Any])


# The first releases of 0.14 stream objects as calls alone.
_TEXT_STREAMS = LLMTextCompletionProgram.stream_call is not BasePydanticProgram.stream_call

# Keywords that say whether a call of a tool must come, and what LlamaIndex takes them for.
_REQUIRED = ("tool_required", False)
_NEEDED = ("error_on_no_tool_call", True)


def _raises_refusals(method: F, keyword: tuple[str, bool] | None = None) -> F:
    """LlamaIndex's method on a copy that raises refusals: always, or where `keyword` is true."""

    def asked(llm: Any, given: Mapping[str, Any]) -> Any:
        return llm._raising(keyword is None or given.get(*keyword))

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        return method(asked(self, kwargs), *args, **kwargs)

    @functools.wraps(method)
    async def acall(self: Any, *args: Any, **kwargs: Any) -> Any:
        return await method(asked(self, kwargs), *args, **kwargs)

    return cast("F", acall if inspect.iscoroutinefunction(method) else call)


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

    structured_predict = _raises_refusals(FunctionCallingLLM.structured_predict)
    astructured_predict = _raises_refusals(FunctionCallingLLM.astructured_predict)
    stream_structured_predict = _raises_refusals(FunctionCallingLLM.stream_structured_predict)
    astream_structured_predict = _raises_refusals(FunctionCallingLLM.astream_structured_predict)

    # Without these keywords an answer may be words, and a refusal is some.
    chat_with_tools = _raises_refusals(FunctionCallingLLM.chat_with_tools, _REQUIRED)
    achat_with_tools = _raises_refusals(FunctionCallingLLM.achat_with_tools, _REQUIRED)
    stream_chat_with_tools = _raises_refusals(FunctionCallingLLM.stream_chat_with_tools, _REQUIRED)
    astream_chat_with_tools = _raises_refusals(
        FunctionCallingLLM.astream_chat_with_tools, _REQUIRED
    )
    predict_and_call = _raises_refusals(FunctionCallingLLM.predict_and_call, _NEEDED)
    apredict_and_call = _raises_refusals(FunctionCallingLLM.apredict_and_call, _NEEDED)

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

    def _raising(self, needed: bool) -> Self:
        if not needed or self._raises:
            return self
        copied = self.model_copy()
        copied._raises = True
        return copied


def _in_form(method: F) -> F:
    """LlamaIndex's method on a copy whose answers are held to the form that is asked for."""

    @functools.wraps(method)
    def call(
        self: Any, output_cls: type[BaseModel], prompt: Any, llm_kwargs: Any = None, **values: Any
    ) -> Any:
        llm, how = self._formed(output_cls, llm_kwargs)
        return method(llm, output_cls, prompt, llm_kwargs=how, **values)

    @functools.wraps(method)
    async def acall(
        self: Any, output_cls: type[BaseModel], prompt: Any, llm_kwargs: Any = None, **values: Any
    ) -> Any:
        llm, how = self._formed(output_cls, llm_kwargs)
        return await method(llm, output_cls, prompt, llm_kwargs=how, **values)

    return cast("F", acall if inspect.iscoroutinefunction(method) else call)


def _chat_events(method: F) -> F:
    """LlamaIndex's own instrumentation of a chat method, with the method's type kept."""
    return cast("F", llm_chat_callback()(method))


def _completion_events(method: F) -> F:
    return cast("F", llm_completion_callback()(method))


class _Ask(NamedTuple):
    """One request: the chat, how it is answered, and whether one call of a tool is enough."""

    chat: list[dict[str, Any]]
    options: dict[str, Any]
    single_call: bool


class GuardedVLM(RaisingLLM):
    """An LLM whose every request is scored, steered or flagged inside the model's own prefill.

        llm = GuardedVLM(guard=guard, max_new_tokens=128)
        llm.chat([ChatMessage(blocks=[TextBlock(text="What is this?"), ImageBlock(path="a.png")])])

    Generation settings are fields, and keywords of each call; None leaves them to the model's
    generation config; other settings are refused. The verdict is in a response's `raw` and
    `additional_kwargs`. A flagged request gets the policy's refusal message, or raises
    `GuardrailViolation`; nothing is streamed before the verdict. The guard is shared, not owned,
    and never serialised: build a saved LLM again with `GuardedVLM.from_dict(data, guard=guard)`.

    Structured output and required calls (extra `structured`) are held to their form: no other
    token is left. A flagged request raises there, and an answer that is cut off a `ValueError`.
    """

    guard: Guard = Field(exclude=True, repr=False)
    max_new_tokens: int | None = Field(default=None, gt=0)
    do_sample: bool | None = None
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    repetition_penalty: float | None = Field(default=None, gt=0)
    seed: int | None = None
    json_schema: dict[str, Any] | None = None
    logprobs: int | None = Field(default=None, ge=0, le=20)
    stop: tuple[str, ...] = ()
    timeout: float | None = Field(default=None, gt=0)

    # Set on a copy for one request: an object must come, and whether it comes as a call.
    _forms: bool = PrivateAttr(default=False)
    _calls: bool = PrivateAttr(default=False)

    structured_predict = _in_form(RaisingLLM.structured_predict)
    astructured_predict = _in_form(RaisingLLM.astructured_predict)
    stream_structured_predict = _in_form(RaisingLLM.stream_structured_predict)
    astream_structured_predict = _in_form(RaisingLLM.astream_structured_predict)

    OPTIONS: ClassVar[tuple[str, ...]] = (
        *(n for n in Settings.model_fields if not n.startswith("num_") and n != "tool_choice"),
        "timeout",
    )

    @classmethod
    def class_name(cls) -> str:
        """The name under which LlamaIndex saves it."""
        return "GuardedVLM"

    @property
    def metadata(self) -> LLMMetadata:
        """What LlamaIndex plans with: prompts are cut to `context_window - num_output`."""
        limits, context = self.guard.policy.limits, self.guard.context
        default = min(Settings().max_new_tokens, limits.new_tokens)
        num_output = self.max_new_tokens or default
        context = context or DEFAULT_CONTEXT_WINDOW
        return LLMMetadata(
            context_window=min(context, limits.prompt_tokens + num_output),
            num_output=num_output,
            is_chat_model=True,
            is_function_calling_model=self.guard.supports_tools,
            model_name=self.guard.processing.source,
        )

    @_chat_events
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answer a chat.

        Raises:
            UnsupportedContentError: a block that a guard cannot score.
            ConfigurationError: a keyword that is no setting.
            GuardrailViolation: it was flagged, and the policy says `on_flag = "raise"`.
        """
        ask = self._ask(to_messages(messages), kwargs)
        result = self.guard.generate(ask.chat, **ask.options)
        return self._answered(replies.whole(result, single_call=ask.single_call))

    @_chat_events
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """`chat` without blocking the event loop; cancelling the task ends the request."""
        ask = self._ask(to_messages(messages), kwargs)
        result = await self.guard.agenerate(ask.chat, **ask.options)
        return self._answered(replies.whole(result, single_call=ask.single_call))

    @_chat_events
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Answer in chunks; none comes before the verdict, and the last has the figures."""
        ask = self._ask(to_messages(messages), kwargs)
        stream = self.guard.stream(ask.chat, **ask.options)
        return self._streamed(replies.chunks(stream, single_call=ask.single_call))

    @_chat_events
    async def astream_chat(
        self, messages: Sequence[ChatMessage], **kwargs: Any
    ) -> ChatResponseAsyncGen:
        """`stream_chat` for `async for`; the request starts with the first chunk asked for."""
        ask = self._ask(to_messages(messages), kwargs)
        stream = self.guard.astream(ask.chat, **ask.options)
        return self._astreamed(replies.achunks(stream, single_call=ask.single_call))

    @_completion_events
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answer a prompt as a user message; `image_documents=` puts pictures before it.

        `formatted` changes nothing: the model's own chat template is always applied.
        """
        ask = self._prompt(prompt, kwargs)
        result = self.guard.generate(ask.chat, **ask.options)
        return replies.as_completion(self._answered(replies.whole(result)))

    @_completion_events
    async def acomplete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponse:
        """`complete` without blocking the event loop."""
        ask = self._prompt(prompt, kwargs)
        result = await self.guard.agenerate(ask.chat, **ask.options)
        return replies.as_completion(self._answered(replies.whole(result)))

    @_completion_events
    def stream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseGen:
        """`complete` in chunks; none comes before the verdict."""
        ask = self._prompt(prompt, kwargs)
        chunks = replies.chunks(self.guard.stream(ask.chat, **ask.options))
        return replies.completions(self._streamed(chunks))

    @_completion_events
    async def astream_complete(
        self, prompt: str, formatted: bool = False, **kwargs: Any
    ) -> CompletionResponseAsyncGen:
        """`stream_complete` for `async for`."""
        ask = self._prompt(prompt, kwargs)
        chunks = replies.achunks(self.guard.astream(ask.chat, **ask.options))
        return replies.acompletions(self._astreamed(chunks))

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        **kwargs: Any,
    ) -> dict[str, Any]:
        choice = kwargs.pop("tool_choice", None)
        if (tool_required or self._calls) and choice in (None, "auto"):
            choice = "required"
        said = ChatMessage(content=user_msg) if isinstance(user_msg, str) else user_msg
        return {
            "messages": [*(chat_history or ()), *(() if said is None else (said,))],
            "tools": list(tools),
            "tool_choice": choice,
            "allow_parallel_tool_calls": allow_parallel_tool_calls,
            **kwargs,
        }

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """The calls of an answer.

        Raises:
            GuardrailViolation: there is none, since the guard refused the request.
            ValueError: there is none, and `error_on_no_tool_call` is set.
        """
        return replies.selections(response, required=error_on_no_tool_call)

    def _formed(
        self, output_cls: type[BaseModel], llm_kwargs: Mapping[str, Any] | None
    ) -> tuple[Self, dict[str, Any]]:
        """A copy for one request for an object, and the request's keywords.

        The object is JSON text, or a call where that is the program mode. So it is with a
        LlamaIndex that streams no objects written as text.
        """
        copied, how = self.model_copy(), dict(llm_kwargs or {})
        copied._forms = True
        modes = PydanticProgramMode
        if self.pydantic_program_mode in (modes.DEFAULT, modes.LLM) and _TEXT_STREAMS:
            copied.pydantic_program_mode = modes.LLM
            how["json_schema"] = closed(output_cls.model_json_schema())
        else:
            copied._calls = True
        return copied, how

    def _answered(self, response: ChatResponse) -> ChatResponse:
        if self._raises:
            replies.raise_refusal(response.raw)
        if self._forms:
            replies.raise_cut(response.raw)
        return response

    def _streamed(self, chunks: Generator[ChatResponse]) -> Generator[ChatResponse]:
        return unrefused(chunks, whole=self._forms) if self._raises else chunks

    def _astreamed(self, chunks: AsyncGenerator[ChatResponse]) -> AsyncGenerator[ChatResponse]:
        return aunrefused(chunks, whole=self._forms) if self._raises else chunks

    def _prompt(self, prompt: str, kwargs: Mapping[str, Any]) -> _Ask:
        options = dict(kwargs)
        documents = options.pop("image_documents", None) or ()
        content = [*document_parts(documents), {"type": "text", "text": prompt}]
        return self._ask([{"role": "user", "content": content}], options, tools=False)

    def _ask(
        self, chat: list[dict[str, Any]], kwargs: Mapping[str, Any], *, tools: bool = True
    ) -> _Ask:
        options, offered = dict(kwargs), replies.Offer()
        if tools:
            offered = replies.offer(options)
        refuse_unknown("GuardedVLM", options, self.OPTIONS)
        merged = {name: getattr(self, name) for name in self.OPTIONS} | options
        how = {name: value for name, value in merged.items() if value is not None}
        how |= {"tools": offered.tools, "tool_choice": offered.choice}
        return _Ask(chat, how, offered.single_call)


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


def unrefused(chunks: Generator[ChatResponse], *, whole: bool = False) -> Generator[ChatResponse]:
    """The same chunks, each one late: only the one after a refusal's words says what they are.

    A `whole` answer raises at its end where that is too early.
    """
    held: ChatResponse | None = None
    with closing(chunks):
        for chunk in chunks:
            raise_refusal(chunk.raw)
            if held is not None:
                yield held
            held = chunk
    if held is not None:
        if whole:
            replies.raise_cut(held.raw)
        yield held


async def aunrefused(
    chunks: AsyncGenerator[ChatResponse], *, whole: bool = False
) -> AsyncGenerator[ChatResponse]:
    """`unrefused` for `async for`."""
    held: ChatResponse | None = None
    async with aclosing(chunks):
        async for chunk in chunks:
            raise_refusal(chunk.raw)
            if held is not None:
                yield held
            held = chunk
    if held is not None:
        if whole:
            replies.raise_cut(held.raw)
        yield held
