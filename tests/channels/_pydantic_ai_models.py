"""Models that keep all that they are sent, for the channels of Pydantic-AI."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import httpx
from openai import AsyncOpenAI
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models import CompletedStreamedResponse, Model
from pydantic_ai.models.function import DeltaToolCall, FunctionModel
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from pydantic_ai.usage import RequestUsage

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def told(value: Any) -> Any:
    """All that an object holds, whatever its `repr` leaves out."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        held = {each.name: told(getattr(value, each.name)) for each in dataclasses.fields(value)}
        return {type(value).__name__: held}
    if isinstance(value, Mapping):
        return {key: told(item) for key, item in value.items()}
    return [told(item) for item in value] if isinstance(value, list | tuple | set) else value


class OtherModel(FunctionModel):
    """Somebody else's model: keeps what it is sent, and answers from a script.

    A step is a text, or the name of a tool and its arguments as JSON; then it says "fine".
    """

    def __init__(self, *steps: Any, **options: Any) -> None:
        self.steps, self.seen = list(steps), list[Any]()
        super().__init__(self._whole, stream_function=self._streamed, **options)

    def said(self) -> str:
        """All that it was sent so far."""
        return repr(told(self.seen))

    def _step(self, messages: Any, info: Any) -> Any:
        self.seen.append((messages, info))
        return self.steps.pop(0) if self.steps else "fine"

    def _whole(self, messages: Any, info: Any) -> ModelResponse:
        step = self._step(messages, info)
        part = ToolCallPart(*step) if isinstance(step, tuple) else TextPart(step)
        return ModelResponse(parts=[part])

    async def _streamed(self, messages: Any, info: Any) -> Any:
        step = self._step(messages, info)
        yield {0: DeltaToolCall(*step)} if isinstance(step, tuple) else step


class RawModel(Model[Any]):
    """A model that takes whatever it is given, in every way that there is."""

    def __init__(self, settings: Any = None) -> None:
        self.seen = list[Any]()
        super().__init__(settings=settings)

    def said(self) -> str:
        """All that it was sent so far."""
        return repr(told(self.seen))

    async def request(self, *given: Any) -> ModelResponse:
        """Keep it."""
        self.seen.append((*given, self.settings))
        return ModelResponse(parts=[TextPart("fine")])

    @asynccontextmanager
    async def request_stream(self, *given: Any) -> AsyncIterator[Any]:
        """Keep it."""
        response, parameters = await self.request(*given), given[2]
        yield CompletedStreamedResponse(
            response, model_request_parameters=parameters, replay_events=True
        )

    async def count_tokens(self, *given: Any) -> RequestUsage:
        """Keep it."""
        self.seen.append(given)
        return RequestUsage(input_tokens=7)

    async def compact_messages(
        self, request_context: Any, *, instructions: str | None = None
    ) -> ModelResponse:
        """Keep it."""
        self.seen.append((request_context.messages, instructions))
        return ModelResponse(parts=[TextPart("fine")])

    async def batch_encode(self, request: Any) -> Any:
        """Keep it."""
        self.seen.append(request)
        return request

    @property
    def model_name(self) -> str:
        """Its name."""
        return "raw"

    @property
    def system(self) -> str:
        """Whose it is."""
        return "nobody"


@dataclasses.dataclass
class Wire:
    """What OpenAI would be sent, in bytes."""

    bodies: list[str] = dataclasses.field(default_factory=list)

    def said(self) -> str:
        """All bodies so far."""
        return "\n".join(self.bodies)

    @property
    def provider(self) -> OpenAIProvider:
        """One that answers itself."""
        client = httpx.AsyncClient(transport=httpx.MockTransport(self._answer))
        key = {"api_key": "none", "base_url": "https://api.openai.com/v1", "max_retries": 0}
        return OpenAIProvider(openai_client=AsyncOpenAI(http_client=client, **key))  # type: ignore[arg-type]

    def responses(self, **options: Any) -> OpenAIResponsesModel:
        """A model of the Responses API."""
        return OpenAIResponsesModel("gpt-5.9", provider=self.provider, **options)

    def chat(self, **options: Any) -> OpenAIChatModel:
        """A model of the Chat Completions API."""
        return OpenAIChatModel("gpt-4.9", provider=self.provider, **options)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.bodies.append(json.dumps(json.loads(request.content), ensure_ascii=False))
        if request.url.path.endswith("/compact"):
            item = {"id": "cmp_1", "type": "compaction", "encrypted_content": "gAAA"}
            return httpx.Response(200, json=_response("response.compaction", item))
        if request.url.path.endswith("/responses"):
            text = {"type": "output_text", "text": "fine", "annotations": []}
            item = {"id": "msg_1", "type": "message", "role": "assistant", "status": "completed"}
            return httpx.Response(200, json=_response("response", {**item, "content": [text]}))
        choice = {"index": 0, "finish_reason": "stop"}
        message = {"role": "assistant", "content": "fine"}
        body = {"id": "c", "object": "chat.completion", "created": 1, "model": "gpt-4.9"}
        return httpx.Response(200, json={**body, "choices": [{**choice, "message": message}]})


def _response(kind: str, item: Mapping[str, Any]) -> dict[str, Any]:
    details = {"cached_tokens": 0, "reasoning_tokens": 0}
    usage = {"input_tokens": 1, "output_tokens": 1, "total_tokens": 2}
    usage |= {"input_tokens_details": details, "output_tokens_details": details}
    body = {"id": "resp_1", "object": kind, "created_at": 1, "model": "gpt-5.9", "usage": usage}
    more = {"status": "completed", "tools": [], "tool_choice": "auto", "parallel_tool_calls": True}
    return {**body, **more, "output": [item]}
