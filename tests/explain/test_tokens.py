"""Tokens as text, for any text and any tokenizer."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from guardrail.explain.tokens import positions_of, token_texts
from guardrail.testing import tiny_model
from guardrail.types import Modality, RowParts, Stretch, TurnSpan

BYTES = tiny_model("llama")[1]


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40))
def test_the_pieces_of_any_text_make_the_text(text):
    ids = BYTES.encode(text)
    pieces = token_texts(BYTES, ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == text
    # a character is whole where it stands
    assert all("\ufffd" not in piece for piece in pieces) or "\ufffd" in text


def test_a_split_character_stands_at_its_last_token():
    ids = BYTES.encode("a\N{GRINNING FACE}!")
    assert token_texts(BYTES, ids) == ["a", "", "", "", "\N{GRINNING FACE}", "!"]


def test_bytes_that_are_no_character_are_given_out_at_the_end():
    ids = BYTES.encode("a\N{GRINNING FACE}")[:-1]  # cut in the middle
    pieces = token_texts(BYTES, ids)
    assert "".join(pieces) == BYTES.decode(ids)
    assert pieces[-1].startswith("\ufffd")


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="a \ufffd\N{GRINNING FACE}\N{EURO SIGN}", max_size=12))
def test_replacement_characters_among_split_ones_lose_nothing(text):
    assert "".join(token_texts(BYTES, BYTES.encode(text))) == text


@pytest.mark.parametrize("behind", ["b", " b", "<|im_end|>", "\N{GRINNING FACE}"])
def test_a_replacement_character_that_was_written_stays_where_it_is(behind):
    ids = BYTES.encode(f"a\ufffd{behind}")
    pieces = token_texts(BYTES, ids)
    assert "".join(pieces) == f"a\ufffd{behind}"
    assert pieces[:4] == ["a", "", "", "\ufffd"]


def test_bytes_without_a_character_of_which_each_is_shown_wait_for_it():
    vocab = {"<unk>": 0, "a": 1, **{f"<0x{byte:02X}>": 2 + byte for byte in range(256)}}
    pieces = [(word, 0.0) for word in vocab]
    core = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    ids = [1, *(2 + byte for byte in "\N{EURO SIGN}".encode()), 1]
    assert tokenizer.decode(ids[:3]) == "a\ufffd\ufffd"
    assert token_texts(tokenizer, ids) == ["a", "", "", "\N{EURO SIGN}", "a"]


def test_a_tokenizer_that_drops_leading_blanks_keeps_them_between_words():
    vocab = {"<unk>": 0, "▁the": 1, "▁cat": 2, "s": 3}
    core = Tokenizer(models.Unigram([(word, 0.0) for word in vocab], unk_id=0, byte_fallback=False))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>")
    assert tokenizer.decode([2]) == "cat"
    assert token_texts(tokenizer, [1, 2, 3]) == ["the", " cat", "s"]


def test_a_token_is_of_whom_its_message_is_and_of_what_it_stands_for():
    ids = BYTES.encode("<|im_end|>ab\n<|im_start|>c<|im_end|>d")
    picture = 4
    spans = (Modality.TEXT, 1, 3), (Modality.IMAGE, 3, 5), (Modality.TEXT, 5, 6)
    stretches = tuple(Stretch(number, *span) for number, span in enumerate(spans))
    parts = RowParts(len(ids), (TurnSpan(0, "user", 1, 6, stretches),))
    scores = [None, *map(float, range(1, len(ids)))]
    found = positions_of(BYTES, ids, parts, {picture: "image"}, scores)
    assert [(p.text, p.kind, p.role, p.score) for p in found] == [
        ("<|im_end|>", "template", None, None),
        ("a", "text", "user", 1.0),
        ("b", "text", "user", 2.0),
        ("\n", "template", "user", 3.0),  # beside the picture, and judged with it
        ("<|im_start|>", "image", "user", 4.0),
        ("c", "text", "user", 5.0),
        ("<|im_end|>", "template", None, 6.0),
        ("d", "template", None, 7.0),
    ]
    whole = RowParts(len(ids), (TurnSpan(0, "user", 0, len(ids)),), aligned=False)
    unknown = positions_of(BYTES, ids, whole, {picture: "image"}, scores)
    assert {p.role for p in unknown} == {None}
    kinds = [p.kind for p in unknown]
    assert kinds == ["template", *["text"] * 3, "image", "text", "template", "text"]
