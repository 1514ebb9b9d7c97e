"""Models that follow a script, and guards that know words and pictures."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from pydantic_ai import models

from tests.channels._pydantic_ai_models import OtherModel

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture(autouse=True)
def no_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    """No model of a provider is asked, by whatever mistake."""
    monkeypatch.setattr(models, "ALLOW_MODEL_REQUESTS", False)


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
