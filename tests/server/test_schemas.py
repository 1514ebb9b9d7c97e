"""One wrong item of a list is told, not each of them."""

from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from guardrail.server.litellm import LiteLLMBody
from guardrail.server.schemas import ChatBody, ChecksBody, Objects, Texts


@pytest.mark.parametrize("kind", [Objects, Texts])
def test_a_list_is_refused_at_its_first_wrong_item(kind):
    with pytest.raises(ValidationError) as caught:
        TypeAdapter(kind).validate_python([1] * 100)
    assert [error["loc"] for error in caught.value.errors()] == [(0,)]


@pytest.mark.parametrize(
    ("schema", "body", "most"),
    [
        (ChatBody, {"model": "m", "messages": [1] * 100, "tools": [1] * 100}, 2),
        (ChecksBody, {"inputs": [1] * 100}, 1),
        (LiteLLMBody, {"input_type": "request", "texts": [1] * 100, "images": [1] * 100}, 2),
    ],
)
def test_bodies_have_few_errors(schema, body, most):
    with pytest.raises(ValidationError) as caught:
        schema.model_validate(body)
    assert caught.value.error_count() == most
