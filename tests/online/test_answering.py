from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from guardrail.online.answering import AnswerText, Detokeniser, StopFilter


def as_bytes(ids):
    """A tokenizer whose tokens are bytes: characters are cut anywhere."""
    return bytes(ids).decode("utf-8", errors="replace")


def as_words(ids):
    """A tokenizer that drops the first blank, as sentencepiece does."""
    return "".join(f" {i}" for i in ids).removeprefix(" ")


@given(st.text(max_size=40))
@settings(max_examples=60, deadline=None)
def test_chunks_join_to_the_whole_text_and_no_half_character_is_shown(text):
    detokeniser = Detokeniser(as_bytes)
    chunks = [detokeniser.push(byte) for byte in text.encode()]
    assert "".join(chunks) + detokeniser.flush() == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in chunk for chunk in chunks)


def test_blanks_between_words_survive_a_tokenizer_that_strips_the_first():
    detokeniser = Detokeniser(as_words)
    assert [detokeniser.push(i) for i in (1, 2, 3)] == ["1", " 2", " 3"]


def test_an_answer_cut_in_mid_character_ends_with_the_replacement_sign():
    detokeniser = Detokeniser(as_bytes)
    assert [detokeniser.push(byte) for byte in "é".encode()[:1]] == [""]
    assert detokeniser.flush() == "\ufffd"


def test_chunks_equal_the_tokenizers_own_text(tiny):
    tokenizer = tiny.tokenizer
    text = "tell me about the cat — 日本 🙂 and\n the dog"
    ids = tokenizer.encode(text, add_special_tokens=False)
    ids.insert(3, tokenizer.eos_token_id)

    def decode(ids):
        return tokenizer.decode(list(ids), skip_special_tokens=True)

    detokeniser = Detokeniser(decode)
    assert "".join(detokeniser.push(i) for i in ids) + detokeniser.flush() == text == decode(ids)


@pytest.mark.parametrize(
    ("stops", "pieces", "out", "matched"),
    [
        (["END"], ["a", "E", "N", "D", "b"], ["a", "", "", "", ""], True),
        (["END"], ["aEN", "x"], ["a", "ENx"], False),
        (["b", "ab"], ["xab"], ["x"], True),
        (["aab"], ["aaa", "b"], ["a", ""], True),
        ([""], ["a"], ["a"], False),
        ([], ["a", ""], ["a", ""], False),
    ],
)
def test_nothing_of_a_stop_string_gets_out(stops, pieces, out, matched):
    stop_filter = StopFilter(stops)
    assert [stop_filter.push(piece) for piece in pieces] == out
    assert stop_filter.matched is matched


@given(
    st.text(alphabet="abc", max_size=30),
    st.lists(st.text(alphabet="abc", min_size=1, max_size=4), max_size=3),
    st.integers(1, 4),
)
@settings(max_examples=150, deadline=None)
def test_a_filtered_text_is_the_text_up_to_a_stop_string(text, stops, size):
    stop_filter = StopFilter(stops)
    out = ""
    for at in range(0, len(text), size):
        out += stop_filter.push(text[at : at + size])
        assert not any(stop in out for stop in stops)
    out += stop_filter.flush()
    if stop_filter.matched:
        assert any(text[len(out) :].startswith(stop) for stop in stops)
    else:
        assert out == text
        assert not any(stop in text for stop in stops)


def test_an_answer_ends_at_its_stop_string_and_its_chunks_join_to_its_text():
    chunks: list[str] = []
    answer = AnswerText(as_bytes, stops=["STOP"], emit=chunks.append)
    ended = [answer.take(byte) for byte in b"one STOP"]
    assert ended == [False] * 7 + [True]
    assert answer.end() == "one " == "".join(chunks)
    assert "" not in chunks


def test_what_was_held_back_comes_out_at_the_end():
    answer = AnswerText(as_bytes, stops=["STOP"], emit=None)
    for byte in b"one ST":
        answer.take(byte)
    assert answer.text == "one "
    assert answer.end() == "one ST"
