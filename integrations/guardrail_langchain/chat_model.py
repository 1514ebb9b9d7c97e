"""A guarded local model as a LangChain chat model.

LangChain's generation settings become a guard's, and a cache's key holds all that an answer depends
on: the pixels of pictures, and the rules it was made under.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from langchain_core.language_models import BaseChatModel
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from PIL import Image, ImageOps
from pydantic import ConfigDict, Field, PrivateAttr, model_validator
from typing_extensions import override

from guardrail import Guard
from guardrail.errors import ConfigurationError, UnsupportedModelError
from guardrail.inputs.media import sniffed_format
from guardrail.inputs.tools import tool_choice as chosen
from guardrail.model.settings import Settings
from guardrail_langchain import replies, structured
from guardrail_langchain.judging import as_exception, as_itself
from guardrail_langchain.messages import to_chat
from guardrail_langchain.runnable import BoundedBatches, in_slices, room

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
    from langchain_core.language_models import LanguageModelInput
    from langchain_core.messages import AIMessage, BaseMessage
    from langchain_core.outputs import ChatGenerationChunk, LLMResult
    from langchain_core.runnables import Runnable
    from pydantic import BaseModel

# LangChain has ways of its own to ask for stops, for calls and for several answers.
_ELSEWHERE = {"stop", "tool_choice", "num_return_sequences"}
NAMES = (*(name for name in Settings.model_fields if name not in _ELSEWHERE), "timeout")
_OTHER_NAMES = {"max_tokens": "max_new_tokens", "max_completion_tokens": "max_new_tokens"}

# Sent along by LangChain itself; they say nothing about the answer.
_IGNORED = frozenset({"tool_choice", "stream", "ls_structured_output_format"})


class ChatGuardedVLM(BoundedBatches, BaseChatModel):
    """A chat model that judges every request inside its own prefill.

        model = ChatGuardedVLM(guard=guard, temperature=0, max_tokens=256)
        answer = model.invoke([HumanMessage([{"type": "image", "url": "data:..."}, "What is it?"])])
        answer.response_metadata["verdict"]["action"]

    Text, pictures (several, in any message) and tool messages arrive in all forms that LangChain
    knows. Streams yield nothing before the verdict. A flagged request is answered with the
    policy's refusal (`finish_reason` is `flag`) or raises `GuardrailViolation`, as the guard's
    policy says. The guard is shared, not owned: close it yourself.
    """

    model_config = ConfigDict(
        arbitrary_types_allowed=True, extra="forbid", validate_by_name=True, validate_by_alias=True
    )

    guard: Guard = Field(exclude=True, repr=False)
    model_name: str = Field(default="", alias="model")
    """Shown in traces and metadata; the guarded model's own name if left out."""
    max_new_tokens: int | None = Field(default=None, alias="max_tokens")
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    do_sample: bool | None = None
    num_beams: int | None = None
    json_schema: dict[str, Any] | None = None
    """What every answer is JSON under; for some answers, see `with_structured_output`."""
    logprobs: int | None = None
    """How many alternatives to each token are told, with its logprob, in `response_metadata`."""
    stop: list[str] | None = Field(default=None, alias="stop_sequences")
    timeout: float | None = None
    """Seconds from asking to answer; None: the policy's."""
    streaming: bool = False
    """Whether `invoke` works by streaming, too, so that callbacks see tokens."""

    _weights: str = PrivateAttr(default="")

    @model_validator(mode="after")
    def _named(self) -> Self:
        self.model_name = self.model_name or self.guard.processing.name
        # of the model that runs: an artefact of another one may have been allowed
        self._weights = digest(self.guard.fingerprint.model_dump(mode="json"))
        return self

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        """A copy on the same guard, which holds a loaded model and is shared."""
        return self.model_copy()

    @property
    @override
    def _llm_type(self) -> str:
        return "guardrail-vlm"

    @property
    @override
    def _identifying_params(self) -> dict[str, Any]:
        """All that an answer depends on, so that a cache serves none made under other rules."""
        fields = self._fields()
        return {
            "model_name": self.model_name,
            "artefact_id": self.guard.artefact.artefact_id,
            "model_fingerprint": self._weights,
            "mode": self.guard.policy.mode,
            "thresholds": {
                str(kind): [each.steer, each.flag] for kind, each in self.guard.thresholds.items()
            },
            "policy_digest": digest(self.guard.policy.model_dump(mode="json")),
            "own_stop": self.stop,  # under "stop" LangChain puts the call's
            **{name: fields[name] for name in NAMES if name != "timeout"},
        }

    @override
    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        result = self.guard.generate(to_chat(messages), **self._options(stop, kwargs))
        return self._result(result)

    @override
    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        result = await self.guard.agenerate(to_chat(messages), **self._options(stop, kwargs))
        return self._result(result)

    @override
    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        with self.guard.stream(to_chat(messages), **self._options(stop, kwargs)) as stream:
            for text in stream:
                yield replies.text_chunk(text)
            if stream.result is not None:
                yield replies.last_chunk(stream.result, self.model_name)

    @override
    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        async with self.guard.astream(to_chat(messages), **self._options(stop, kwargs)) as stream:
            async for text in stream:
                yield replies.text_chunk(text)
            if stream.result is not None:
                yield replies.last_chunk(stream.result, self.model_name)

    @override
    def generate(self, messages: list[list[BaseMessage]], *args: Any, **kwargs: Any) -> LLMResult:
        """Answers to several chats; pictures become data, so that traces and caches see them."""
        return super().generate([list(map(with_data, chat)) for chat in messages], *args, **kwargs)

    @override
    async def agenerate(
        self, messages: list[list[BaseMessage]], *args: Any, **kwargs: Any
    ) -> LLMResult:
        """`generate` for event loops; no more at once than the guard's queue takes."""
        chats = [list(map(with_data, chat)) for chat in messages]
        with as_itself():
            return await in_slices(super().agenerate, chats, room(self.guard), args, kwargs)

    @override
    async def _agenerate_with_cache(self, *args: Any, **kwargs: Any) -> ChatResult:
        # `agenerate` takes whatever is no Exception for an answer.
        with as_exception():
            return await super()._agenerate_with_cache(*args, **kwargs)

    @override
    def get_token_ids(self, text: str) -> list[int]:
        """Tokens of the guarded model's own tokenizer."""
        ids: list[int] = self.guard.processing.tokenizer.encode(text, add_special_tokens=False)
        return ids

    @override
    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: Any = None,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """The model with tools to call, in its own chat template's form.

        `tool_choice` is `auto`, `none` (no tool is offered), `any` or a tool's name: an answer is
        then a call, with arguments that are valid under the tool's schema. That needs the extra
        `structured`. With `strict` no schema leaves keys open.

        Raises:
            UnsupportedModelError: the model's chat template knows no tools.
            ConfigurationError: `tool_choice` names no tool, or a tool runs elsewhere.
        """
        if tools and not self.guard.supports_tools:
            raise UnsupportedModelError(
                f"the chat template of {self.model_name} knows no tools, so bind_tools cannot "
                "work; load a model whose template does (with_structured_output needs none)"
            )
        offered = offered_tools(tools, strict=strict)
        bound = self.bind(tools=offered, tool_choice=chosen(tool_choice, offered), **kwargs)
        # A form has no place for a refusal: parsed, one would be None, as if nothing was found.
        return bound | replies.no_refusals() if "ls_structured_output_format" in kwargs else bound

    @override
    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        include_raw: bool = False,
        method: str = "json_schema",
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """The model with answers in a form, which no other token is left for.

        By `json_schema` the answer is JSON under the schema, by `function_calling` a call of a tool
        with that schema, by `json_mode` any JSON object. The model is shown a tool's schema alone,
        so say in the prompt what is wanted. It needs the extra `structured`. With `strict` no
        dictionary leaves keys open; those of classes never do. A flagged request raises
        `GuardrailViolation`, whatever the policy's `on_flag` is, and an answer that was cut off an
        `OutputParserException`, which `include_raw` tells as `parsing_error`.

        Raises:
            UnsupportedModelError: the form is a call, and the chat template knows no tools.
            ConfigurationError: no such method, no such schema, or a keyword of another model's.
        """
        if kwargs:
            raise ConfigurationError(f"with_structured_output knows no {', '.join(kwargs)}")
        if method not in structured.METHODS:
            known = ", ".join(structured.METHODS)
            raise ConfigurationError(f"method={method!r} is none of {known}")
        if schema is None and method != "json_mode":
            raise ConfigurationError(f"method={method!r} needs a schema")
        how = {"method": method} if method == "json_mode" else {"method": method, "strict": strict}
        told = {"ls_structured_output_format": {"kwargs": how, "schema": schema}}
        model: Any
        if method == "function_calling":
            name = convert_to_openai_tool(schema)["function"]["name"]  # type: ignore[arg-type]
            model = self.bind_tools([schema], tool_choice=name, strict=strict, **told)  # type: ignore[list-item]
        else:
            wanted: Any = {"type": "object"}
            if method == "json_schema":
                wanted = structured.json_schema(schema, strict=strict)
            model = self.bind(json_schema=wanted, **told) | replies.no_refusals()
        calls = method == "function_calling"
        return structured.parsed(model, schema, calls=calls, include_raw=include_raw)

    def _fields(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in (*NAMES, "stop")}

    def _options(self, stop: list[str] | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        return guard_options(self._fields(), stop, kwargs, self.model_name)

    def _result(self, result: Any) -> ChatResult:
        answer = replies.message(result, self.model_name)
        info = {"finish_reason": replies.finish_reason(result)}
        return ChatResult(generations=[ChatGeneration(message=answer, generation_info=info)])


def guard_options(
    fields: Mapping[str, Any], stop: Sequence[str] | None, call: Mapping[str, Any], model: str
) -> dict[str, Any]:
    """What `Guard.generate` takes, from the model's fields and one call's keywords.

    Raises:
        ConfigurationError: a keyword that means nothing to a guard, or another model's name.
    """
    options = {name: fields[name] for name in NAMES if fields.get(name) is not None}
    given = dict(call)
    if given.pop("model", model) != model:
        raise ConfigurationError(
            f"a guard is tied to its model ({model}); make another ChatGuardedVLM for "
            f"{call['model']!r}"
        )
    if isinstance(given.get("logprobs"), bool):  # OpenAI's, with a number of its own
        asked, count = given.pop("logprobs"), given.pop("top_logprobs", None)
        given["logprobs"] = (count or 0) if asked else None
    for name, value in given.items():
        wanted = _OTHER_NAMES.get(name, name)
        if wanted in NAMES:
            options[wanted] = value
        elif wanted == "response_format":
            options["json_schema"] = structured.of_response_format(value)
        elif wanted == "tools":
            options["tools"] = offered_tools(value or ()) or None
        elif wanted not in _IGNORED:
            raise ConfigurationError(
                f"a guard knows no setting {name!r}; known are {', '.join((*NAMES, 'stop'))}"
            )
    options["tool_choice"] = chosen(given.get("tool_choice"), options.get("tools") or ())
    stops = fields.get("stop") if stop is None else stop
    if isinstance(stops, str):
        raise ConfigurationError(f"stop must be a list of strings; write [{stops!r}]")
    if stops:
        options["stop"] = tuple(stops)
    return {name: value for name, value in options.items() if value is not None}


def offered_tools(tools: Sequence[Any], *, strict: bool | None = None) -> list[dict[str, Any]]:
    """Tools in the OpenAI function form.

    Raises:
        ConfigurationError: one runs elsewhere.
    """
    return [_schema(tool, strict) for tool in tools]


def _schema(tool: Any, strict: bool | None) -> dict[str, Any]:
    schema: dict[str, Any] = convert_to_openai_tool(tool, strict=strict)
    function = schema.get("function")
    if schema.get("type") != "function" or not isinstance(function, Mapping):
        kind = schema.get("type", type(tool).__name__)
        raise ConfigurationError(f"a {kind!r} tool runs on a provider's server, not on this model")
    known = {"name", "description", "parameters", "strict"}
    function = {key: value for key, value in function.items() if key in known}
    if isinstance(tool, BaseTool) and not function.get("description"):
        function.pop("description", None)
    return {"type": "function", "function": function}


def digest(value: Any) -> str:
    """A short name of JSON values."""
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def with_data(message: BaseMessage) -> BaseMessage:
    """The message with pictures and bytes as data, as LangChain writes messages down.

    In a cache's key a Pillow picture would stand as the address it has in memory, where another
    picture may be found later.
    """
    if isinstance(message.content, str):
        return message
    content = [_with_data(block) for block in message.content]
    if all(a is b for a, b in zip(content, message.content, strict=True)):
        return message
    return message.model_copy(update={"content": content})


def _with_data(block: Any) -> Any:
    if not isinstance(block, Mapping):
        return block
    for key in ("image", "base64", "data"):
        value = block.get(key)
        if isinstance(value, Image.Image | bytes | bytearray):
            rest = {name: item for name, item in block.items() if name != key}
            return {**rest, "base64": _encoded(value), "mime_type": _kind(value, block)}
    return block


def _kind(value: Any, block: Mapping[str, Any]) -> str:
    if isinstance(value, Image.Image):
        return "image/png"
    found = sniffed_format(bytes(value[:64])) or "PNG"
    return str(block.get("mime_type") or f"image/{found.lower()}")


def _encoded(value: Image.Image | bytes | bytearray) -> str:
    if not isinstance(value, Image.Image):
        return base64.b64encode(value).decode()
    buffer = io.BytesIO()
    upright = ImageOps.exif_transpose(value)
    if upright.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        upright = upright.convert("RGB")
    upright.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()
