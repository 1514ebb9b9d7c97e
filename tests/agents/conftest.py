"""Models that follow a script, a guard that knows words, and an SDK that sends nothing anywhere."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING, Any

import pytest
from agents import Model, ModelResponse, Usage, set_tracing_disabled
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseFunctionToolCall,
    ResponseOutputMessage,
    ResponseOutputText,
)
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture(autouse=True)
def no_traces() -> Iterator[None]:
    set_tracing_disabled(True)
    yield
    set_tracing_disabled(False)


class OtherModel(Model):
    """Somebody else's model: keeps what it is sent, and answers from a script.

    A step is a text, or the name of a tool and its arguments as JSON; then it says "fine".
    """

    def __init__(self, *steps: Any) -> None:
        self.steps, self.seen = list(steps), list[Any]()

    def said(self) -> str:
        """All that it was sent so far."""
        return repr(self.seen)

    def _answer(
        self,
        system_instructions: Any,
        input: Any,
        model_settings: Any,
        tools: Any,
        output_schema: Any,
        handoffs: Any,
        tracing: Any,
        **stored: Any,
    ) -> Any:
        self.seen.append((system_instructions, input, (tools, output_schema, handoffs)))
        step = self.steps.pop(0) if self.steps else "fine"
        if isinstance(step, tuple):
            name, arguments = step
            label = f"c{len(self.seen)}"
            return ResponseFunctionToolCall(
                type="function_call", id=label, call_id=label, name=name, arguments=arguments
            )
        part = ResponseOutputText(type="output_text", text=step, annotations=[])
        return ResponseOutputMessage(
            id="m1", type="message", role="assistant", status="completed", content=[part]
        )

    async def get_response(self, *args: Any, **kwargs: Any) -> ModelResponse:
        answer = self._answer(*args, **kwargs)
        return ModelResponse(output=[answer], usage=Usage(), response_id=None)

    async def stream_response(self, *args: Any, **kwargs: Any) -> Any:
        answer = self._answer(*args, **kwargs)
        response = Response(
            id="r1",
            created_at=0,
            model="other",
            object="response",
            output=[answer],
            tool_choice="auto",
            tools=[],
            parallel_tool_calls=False,
        )
        yield ResponseCompletedEvent(
            response=response, sequence_number=0, type="response.completed"
        )


@pytest.fixture
def other_model() -> type[OtherModel]:
    return OtherModel


def as_url(picture: Image.Image, **options: Any) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG", **options)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.fixture
def data_url(picture: Callable[..., Image.Image]) -> str:
    """A picture in the form in which pictures go on."""
    return as_url(picture(1), compress_level=1)


@pytest.fixture
def two_ways(picture: Callable[..., Image.Image]) -> str:
    """The same pixels in a form that decoders may read in two ways."""
    turned = picture(1).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    return as_url(turned, exif=exif)
