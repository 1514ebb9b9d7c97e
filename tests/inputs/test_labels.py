"""Labels: what is one, and what stands in the place of one and is not."""

from __future__ import annotations

import pytest

from guardrail.inputs.labels import is_label, is_unspoken, shown_labels


@pytest.mark.parametrize("text", ["", "call_1", "toolu_01A", "a.b:c|d+e/f=g-h", "x" * 64])
def test_an_id_is_a_label(text):
    assert is_label(text)


@pytest.mark.parametrize("text", ["two words", "x" * 65, "na\u00efve", "a\nb", "what?", "{}"])
def test_what_is_long_or_has_a_blank_or_other_letters_is_none(text):
    assert not is_label(text)


def test_a_label_is_one_only_where_labels_are_known_to_stand():
    assert is_unspoken("id", "call_1", {"id"})
    assert not is_unspoken("note", "call_1", {"id"})
    assert not is_unspoken("id", "call me", {"id"})
    assert not is_unspoken("id", {"a": "b"}, {"id"})


def test_a_cipher_is_long_and_has_no_blank():
    cipher = "Zm9v/+_-" * 100 + "=="
    assert is_unspoken("signature", cipher, ())
    assert not is_unspoken("signature", f"{cipher} and words", ())
    assert not is_unspoken("id", cipher, {"id"})
    assert is_unspoken("data", cipher, (), {"data"})


def test_names_and_ids_that_are_none_are_shown_once():
    chat = [
        {"role": "user", "name": "Ann", "content": "hi"},
        {"role": "assistant", "tool_calls": [{"id": "see that", "function": {"name": "look"}}]},
        {"role": "tool", "name": "look", "tool_call_id": "see that", "content": "x"},
        {"role": "tool", "name": "find", "tool_call_id": "c1", "content": "x"},
    ]
    tools = [{"type": "function", "function": {"name": "find"}}]
    assert shown_labels(chat, tools) == ["Ann", "see that"]
    assert shown_labels("no chat", ()) == []
