"""Models that follow a script, and guards that know words and pictures."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from pydantic_ai import models
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import DeltaToolCall, FunctionModel

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def no_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model of a provider is asked, by whatever mistake."""
    monkeypatch.setattr(models, "ALLOW_MODEL_REQUESTS", False)


class OtherModel(FunctionModel):
    """Somebody else's model: keeps what it is sent, and answers from a script.

    A step is a text, or the name of a tool and its arguments as JSON; then it says "fine".
    """

    def __init__(self, *steps: Any) -> None:
        self.steps, self.seen = list(steps), list[Any]()
        super().__init__(self._whole, stream_function=self._streamed)

    def said(self) -> str:
        """All that it was sent so far."""
        return repr(self.seen)

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


@pytest.fixture
def other_model() -> type[OtherModel]:
    return OtherModel


def png(picture: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", **options)
    return file.getvalue()


@pytest.fixture
def plain(picture: Callable[..., Image.Image]) -> bytes:
    """A picture in the form in which pictures go on."""
    return png(picture(1), compress_level=1)


@pytest.fixture
def two_ways(picture: Callable[..., Image.Image]) -> bytes:
    """The same pixels in a form that decoders may read in two ways."""
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    return png(picture(1).transpose(Image.Transpose.ROTATE_90), exif=exif)
