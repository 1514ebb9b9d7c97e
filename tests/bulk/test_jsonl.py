from __future__ import annotations

import pytest

from guardrail.bulk import jsonl as module
from guardrail.bulk.columns import Columns
from guardrail.bulk.jsonl import JsonlSource
from guardrail.errors import ConfigurationError, DatasetError, UnsupportedContentError


def loaded(path, wanted, columns=None, **options):
    source = JsonlSource(path, columns or Columns(), prompt=None, **options)
    rows = [item.load() for item in source.items(wanted)]
    assert source.rows == len(rows)
    return rows


def test_strings_chats_and_objects_are_requests_and_blank_lines_are_no_rows(
    jsonl, tmp_path, everything
):
    chat = [{"role": "user", "content": "Hi"}]
    path = jsonl(["a", "!", chat, {"messages": chat, "id": "x"}, "!  ", {"text": "b", "id": 5}])
    path.write_text(path.read_text() + '{"text": "c", "image": "p.png"}')  # no line feed at the end
    keys, values = zip(*loaded(path, everything), strict=True)
    assert keys == ("0", "1", "x", "5", "4")
    assert values[:4] == ("a", chat, chat, "b")
    assert values[4][0]["content"][0] == {"type": "image", "path": str(tmp_path / "p.png")}


def test_a_line_that_is_no_request_is_an_error_in_its_row(jsonl, everything, monkeypatch):
    monkeypatch.setattr(module, "_MAX_LINE", 60)
    path = jsonl(
        ["!{bad", {"text": "a", "foo": 1, "id": "kept"}, "x" * 200, {"text": 3}, "!NaN", "last"]
    )
    path.write_bytes(b'"\xff"\n' + path.read_bytes())
    rows = loaded(path, everything)
    assert [isinstance(value, UnsupportedContentError) for _, value in rows] == [True] * 6 + [False]
    assert rows[2].key == "kept"
    assert "'foo' beside" in str(rows[2].value)
    assert "longer than 60 bytes" in str(rows[3].value)
    assert rows[6] == ("6", "last")


def test_named_columns_are_read_and_ignored_ones_are_not(jsonl, everything):
    path = jsonl([{"q": "a", "text": "b", "n": 1}, {"text": "b", "n": 2}, "c"])
    rows = loaded(path, everything, Columns(text="q", id="n", ignored=("text",)))
    assert rows[0] == ("1", "a")
    assert (rows[1].key, type(rows[1].value)) == ("2", UnsupportedContentError)
    assert (rows[2].key, type(rows[2].value)) == ("2", UnsupportedContentError)


def test_words_beside_a_named_picture_are_read(jsonl, everything):
    path = jsonl([{"photo": "p.png", "text": "a"}, {"photo": None, "text": "b"}])
    (_, both), (_, words) = loaded(path, everything, Columns(image="photo"))
    assert both[0]["content"][1] == {"type": "text", "text": "a"}
    assert words == "b"


def test_a_key_that_looks_like_a_part_is_an_error_of_its_line(jsonl, everything):
    path = jsonl(
        [
            {"photo": "p.png", "text": "a", "question": None, "images": 2},
            {"photo": "p.png", "question": "b"},
            {"photo": "p.png", "scan": {"bytes": "", "path": "s.png"}},
        ]
    )
    first, *others = loaded(path, everything, Columns(image="photo", ignored=("images",)))
    assert first.value[0]["content"][1] == {"type": "text", "text": "a"}
    assert all(isinstance(value, UnsupportedContentError) for _, value in others)
    assert "'question' would not be read" in str(others[0].value)
    assert "'scan' would not be read" in str(others[1].value)


def test_a_question_is_no_label_and_is_ignored_on_purpose_only(jsonl, everything):
    rows = [{"image": "p.png", "question": "How?", "label": "harmful"}, "a"]
    (_, refused), _ = loaded(jsonl(rows), everything)
    assert "'question' would not be read" in str(refused)
    (_, picture), _ = loaded(jsonl(rows), everything, Columns(ignored=("question",)))
    assert [part["type"] for part in picture[0]["content"]] == ["image"]


def test_an_id_column_alone_leaves_the_usual_keys(jsonl, everything):
    path = jsonl([{"text": "a", "n": 1}, {"text": "b", "n": 2}])
    assert loaded(path, everything, Columns(id="n")) == [("1", "a"), ("2", "b")]


@pytest.mark.parametrize("columns", [Columns(), Columns(text="wrods")])
def test_a_file_of_which_nothing_can_be_read_is_told_before_the_model_loads(jsonl, columns):
    path = jsonl([{"words": "a"}, {"words": "b"}])
    with pytest.raises(DatasetError, match=r"none of the first 2 lines .* is a request"):
        JsonlSource(path, columns, prompt=None)


def test_columns_that_exclude_each_other_are_refused(jsonl):
    with pytest.raises(ConfigurationError, match="whole chats"):
        JsonlSource(jsonl(["a"]), Columns(text="text", messages="messages"), prompt=None)


def test_the_prompt_is_asked_beside_a_picture_without_words(jsonl, everything):
    path = jsonl([{"image": "p.png"}, {"image": "p.png", "text": "Own"}, "alone"])
    source = JsonlSource(path, Columns(), prompt="What?")
    values = [item.load().value for item in source.items(everything)]
    assert values[0][0]["content"][1:] == [{"type": "text", "text": "What?"}]
    assert values[1][0]["content"][1:] == [{"type": "text", "text": "Own"}]
    assert values[2] == "alone"


def test_only_wanted_lines_are_parsed_and_keep_their_numbers(jsonl, only):
    source = JsonlSource(jsonl(["!{bad", "b", "!{bad", "d"]), Columns(), prompt=None)
    items = list(source.items(only(1, 3)))
    assert [(item.number, item.load().value) for item in items] == [(1, "b"), (3, "d")]


def test_lines_are_counted_again_only_when_the_file_changed(jsonl, monkeypatch):
    path = jsonl(["a", "b"])
    first = JsonlSource(path, Columns(), prompt=None)
    known = {"rows": 99, "digest": first.digest()}
    assert JsonlSource(path, Columns(), prompt=None, known=known).rows == 99
    path = jsonl(["a", "b", "c"])
    assert JsonlSource(path, Columns(), prompt=None, known=known).rows == 3
