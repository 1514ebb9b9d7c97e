"""The names against those that the installed semantic conventions list."""

from __future__ import annotations

import importlib
import warnings

import pytest

from guardrail.observe import names

NAMED = {
    key: value for key, value in vars(names).items() if key.isupper() and isinstance(value, str)
}


def listed(module):
    found = pytest.importorskip("opentelemetry.semconv") and importlib.import_module(module)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return {getattr(found, name) for name in dir(found) if name.isupper()}


@pytest.mark.parametrize("room", ["http", "url", "error"])
def test_the_stable_names_are_listed_as_stable(room):
    mine = {value for value in NAMED.values() if value.split(".")[0] == room}
    assert mine
    assert mine <= listed(f"opentelemetry.semconv.attributes.{room}_attributes")


def test_the_provisional_names_are_listed():
    mine = {v for v in NAMED.values() if v.startswith("gen_ai.")} - {names.EVALUATION_EVENT}
    assert mine <= listed("opentelemetry.semconv._incubating.attributes.gen_ai_attributes")


def test_every_other_attribute_is_in_our_own_room():
    values = {names.CHAT, names.PROVIDER_VALUE}
    rooms = {v.split(".")[0] for v in set(NAMED.values()) - values}
    assert rooms == {"http", "url", "error", "gen_ai", "guardrail"}
