"""What a template or processor says against a chat reaches the caller; the right part is blamed."""

from __future__ import annotations

import jinja2
import pytest
from PIL import Image

from guardrail.errors import UnsupportedContentError
from guardrail.model.encode import refusal
from guardrail.types import ImagePart, Message, Request, TextPart


class Picky:
    """A processor whose image processor refuses some pictures."""

    def __init__(self, refuses):
        self._refuses = refuses

    def image_processor(self, images, return_tensors):
        if any(self._refuses(image) for image in images):
            raise ValueError("no such picture, please")
        return {}


def turn(*parts):
    wrapped = (TextPart(p) if isinstance(p, str) else ImagePart(p) for p in parts)
    return Message(role="user", parts=tuple(wrapped))


def picture(width, height=30):
    return Image.new("RGB", (width, height))


REQUESTS = [
    Request((turn(picture(40), "a"), turn("b", picture(50), picture(99)))),
    Request((turn(picture(99), "c"),)),
]


def test_the_first_picture_that_is_refused_alone_is_named():
    error = refusal(Picky(lambda image: image.width == 99), REQUESTS, ValueError("too wide"))
    assert isinstance(error, UnsupportedContentError)
    assert str(error).startswith("messages[1]: picture 2 of 2 is 99 x 30 pixels")
    assert "no such picture, please" in str(error)
    assert "too wide" not in str(error)


def test_no_picture_is_blamed_when_each_is_taken_alone():
    error = refusal(Picky(lambda _image: False), REQUESTS, ValueError("they do not go together"))
    assert "ValueError: they do not go together" in str(error)
    assert "messages[" not in str(error)


def test_no_picture_is_blamed_by_an_image_processor_that_refuses_any():
    error = refusal(Picky(lambda _image: True), REQUESTS, TypeError("unexpected keyword"))
    assert "TypeError: unexpected keyword" in str(error)
    assert "messages[" not in str(error)


@pytest.mark.parametrize("processor", [Picky(lambda _image: True), object()])
def test_a_template_speaks_for_itself(processor):
    said = jinja2.TemplateError("roles must alternate")
    error = refusal(processor, REQUESTS, said)
    assert str(error) == "the model's chat template refuses this chat: roles must alternate"


def test_a_processor_of_texts_alone_is_not_asked_about_pictures():
    error = refusal(object(), [Request((turn("hello"),))], LookupError("no such key"))
    assert "LookupError: no such key" in str(error)
