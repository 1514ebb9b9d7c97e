from __future__ import annotations

from types import SimpleNamespace

import pytest
from transformers import DynamicCache

from guardrail.model.caches import cache_argument, passed_cache


def test_the_cache_is_found_under_any_name():
    cache = DynamicCache()
    assert passed_cache([None, "text", 3, cache]) is cache
    assert passed_cache([None, "text"]) is None


@pytest.mark.parametrize(
    ("forward", "name"),
    [
        (lambda input_ids, past_key_values=None: None, "past_key_values"),
        (lambda input_ids, cache=None: None, "cache"),
    ],
)
def test_the_arguments_name_is_read_off_the_model(forward, name):
    assert cache_argument(SimpleNamespace(forward=forward)) == name


def test_the_name_fits_the_installed_library(llama):
    assert cache_argument(llama.model) in ("cache", "past_key_values")
    output = llama.model(input_ids=llama.model.dummy_inputs["input_ids"], use_cache=True)
    assert passed_cache([getattr(output, cache_argument(llama.model))]) is not None
