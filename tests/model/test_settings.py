from __future__ import annotations

from types import SimpleNamespace

import pytest
from pydantic import ValidationError

from guardrail.model.settings import Settings, generation_config


def model(do_sample: bool):
    return SimpleNamespace(generation_config=SimpleNamespace(do_sample=do_sample))


@pytest.mark.parametrize(
    ("options", "by_default", "sampling"),
    [
        ({}, False, False),
        ({}, True, True),
        ({"temperature": 0}, True, False),
        ({"temperature": 0, "do_sample": True}, True, False),
        ({"temperature": 0.5}, False, True),
        ({"top_p": 0.5}, False, True),
        ({"top_k": 3}, False, True),
        ({"top_k": 3, "do_sample": False}, True, False),
        ({"seed": 3}, False, False),
    ],
)
def test_whether_tokens_are_drawn_follows_from_what_is_asked(options, by_default, sampling):
    assert Settings(**options).samples(model(by_default)) is sampling


def test_temperature_zero_never_reaches_the_library(llama):
    config = generation_config(llama.model, Settings(temperature=0))
    assert (config.do_sample, config.temperature) == (False, 1.0)
    assert generation_config(llama.model, Settings(temperature=0.3)).temperature == 0.3
    with pytest.raises(ValidationError):
        Settings(temperature=-0.1)
