"""The tokenizer and the template that all tiny families share."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest

from guardrail.testing.tokens import tokenizer

SAID = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "hi"}]}]


def render(words: Any, chat: Any) -> str:
    shown: str = words.apply_chat_template(chat, tokenize=False)
    return shown


def test_media_are_written_as_given_and_unknown_ones_refused() -> None:
    words = tokenizer({"image_token": "<image>"}, "<image>\\n")
    assert render(words, SAID) == "<|im_start|>user\n<image>\nhi<|im_end|>\n"
    for kind in ("video", "audio"):
        with pytest.raises(jinja2.TemplateError, match=f"unknown part {kind}"):
            render(words, [{"role": "user", "content": [{"type": kind}]}])


def test_the_beginning_is_written_once_and_only_where_asked_for() -> None:
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    assert render(tokenizer({}, "", begin=True), chat).count("<|begin|>") == 1
    words = tokenizer({}, "", begin=False)
    assert "<|begin|>" not in render(words, chat)
    assert words.bos_token == "<|begin|>"
    assert tokenizer().bos_token is None


@pytest.mark.parametrize("own", [None, "Qwen3_5Tokenizer"])
def test_named_tokens_are_single_special_and_found_by_their_names(own: str | None) -> None:
    words: Any = tokenizer({"image_token": "<image>", "stop_token": "</image>"}, "", own=own)
    ids = words.encode("a<image></image>", add_special_tokens=False)[-2:]
    assert words.convert_ids_to_tokens(ids) == ["<image>", "</image>"]
    assert words.image_token_id == ids[0]
    assert set(ids) < set(words.all_special_ids)
    assert max(words.get_vocab().values()) == len(words) - 1


@pytest.mark.parametrize("own", [None, "Qwen3_5Tokenizer"])
@pytest.mark.parametrize("text", ["héllo wörld", "猫 🐱", "a\x00b\n\ttab", "you can't, 10 %"])
def test_any_text_encodes_without_loss(own: str | None, text: str) -> None:
    words = tokenizer(own=own)
    ids = words(text, add_special_tokens=False)["input_ids"]
    assert words.decode(ids) == text
    assert len(ids) < len(text.encode()) + 1
