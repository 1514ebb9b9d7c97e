"""Events are cut the same wherever the chunks are, and are left alone otherwise."""

from __future__ import annotations

import json

import pytest

from guardrail.asgi.wire import Event, EventTooLargeError, Splitter, event

STREAM = (
    ': ping\r\n\r\nevent: x\r\ndata: {"a": "é…"}\r\n\r\n'
    'data: {"b": 1}\n\ndata: {"c":\ndata: 2}\n\ndata: {"d": "\U0001f600"}\r\rdata: [DONE]\n\n'
).encode()


def cut(pieces, limit=1_000):
    splitter = Splitter(limit)
    return [found for piece in pieces for found in splitter.feed(piece)], splitter.rest()


def test_events_are_the_same_for_each_place_where_chunks_end():
    whole, rest = cut([STREAM])
    assert rest == b""
    assert [Event(raw).data for raw in whole if Event(raw).data] == [
        {"a": "é…"},
        {"b": 1},
        {"c": 2},
        {"d": "\U0001f600"},
    ]
    for at in range(len(STREAM)):
        found, rest = cut([STREAM[:at], STREAM[at:]])
        assert b"".join(found) + rest == STREAM
        assert [Event(raw).data for raw in found if Event(raw).data] == [
            Event(raw).data for raw in whole if Event(raw).data
        ]


def test_bytes_one_by_one_give_the_same_events():
    found, rest = cut([STREAM[i : i + 1] for i in range(len(STREAM))])
    assert b"".join(found) + rest == STREAM
    assert sum(Event(raw).done for raw in found) == 1


def test_one_line_end_of_two_bytes_ends_no_event():
    found, rest = cut([b"data: 1\r\n", b"data: 2\r\n"])
    assert found == []
    assert rest == b"data: 1\r\ndata: 2\r\n"


@pytest.mark.parametrize("pieces", [[b"data: " + b"x" * 20], [b"data: " + b"x" * 20 + b"\n\n"]])
def test_an_event_larger_than_allowed_is_refused_whole_or_not(pieces):
    with pytest.raises(EventTooLargeError):
        cut(pieces, limit=10)


def test_small_events_may_come_in_a_large_chunk():
    found, _ = cut([b"data: 1\n\n" * 100], limit=10)
    assert len(found) == 100


def test_a_field_goes_into_the_data_and_other_lines_stay():
    raw = b'id: 7\nevent: x\n: note\ndata: {"a": 1}\n\n'
    changed = Event(raw).with_field("b", {"c": 2})
    assert changed == b'id: 7\nevent: x\n: note\ndata: {"a": 1, "b": {"c": 2}}\n\n'


def test_a_field_of_the_upstream_does_not_outlive_ours():
    assert Event(Event(b'data: {"g": 1}\n\n').with_field("g", 2)).data == {"g": 2}


def test_half_a_character_in_the_data_can_be_written_again():
    changed = Event(rb'data: {"a": "\ud83d"}' + b"\n\n").with_field("b", 1)
    assert Event(changed).data == {"a": "\ud83d", "b": 1}


@pytest.mark.parametrize(
    "raw",
    [
        b"data: nothing\n\n",
        b"data: [1]\n\n",
        b'data: {"a": NaN}\n\n',
        b'data: {"a": 1, "a": 2}\n\n',
        b"data: \xff\n\n",
        b'data: {"a":' + b"[" * 100_000 + b"\n\n",
    ],
)
def test_what_is_no_object_is_an_error(raw):
    with pytest.raises(ValueError):  # noqa: PT011  # kinds of it
        Event(raw)


def test_a_comment_has_no_data_and_ends_nothing():
    comment = Event(b": ping\n\n")
    assert comment.data is None
    assert not comment.done


def test_own_events_have_a_kind_where_wanted():
    assert event({"a": 1}) == b'data: {"a": 1}\n\n'
    assert event({"a": "\n"}, "error").startswith(b"event: error\ndata: ")
    assert json.loads(event({"a": "\n\n"})[6:]) == {"a": "\n\n"}
