"""Text that UTF-8 cannot write breaks no answer."""

from __future__ import annotations

import json

import pytest

from guardrail.server.ascii_json import AsciiJSONResponse


@pytest.mark.parametrize("text", ["é", "half \ud800", "\u2028", "\U0001f600"])
def test_any_text_comes_back_as_it_was(text):
    body = bytes(AsciiJSONResponse({"text": text}).body)
    assert body.isascii()
    assert json.loads(body) == {"text": text}


def test_numbers_that_are_none_are_refused():
    with pytest.raises(ValueError, match="JSON"):
        AsciiJSONResponse({"score": float("nan")})
