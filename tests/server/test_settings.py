from __future__ import annotations

import pytest
from pydantic import ValidationError

from guardrail.server import ServerSettings
from guardrail.server.keys import keys_from_text

TWO = keys_from_text("a:0123456789abcdef0,b:0123456789abcdef1", source="x")


def test_one_of_several_clients_has_half_of_the_places():
    assert ServerSettings(max_concurrent=9).per_client(()) == 9
    assert ServerSettings(max_concurrent=9).per_client(TWO[:1]) == 9
    assert ServerSettings(max_concurrent=9).per_client(TWO) == 5
    assert ServerSettings(max_concurrent=9, max_per_client=2).per_client(TWO) == 2


def test_a_misspelt_setting_is_an_error():
    with pytest.raises(ValidationError):
        ServerSettings(max_body=1)
