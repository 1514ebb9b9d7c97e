from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from guardrail.bulk import tables as module
from guardrail.bulk.tables import Columns, JsonlSource, ParquetSource, media_by_type
from guardrail.errors import ConfigurationError, DatasetError, UnsupportedContentError
from guardrail.inputs.messages import to_request
from guardrail.policy import Policy

HERE = Path("/data")


def load(columns, row, prompt=None):
    return columns.load(row, HERE, prompt=prompt, otherwise="7")


@pytest.mark.parametrize(
    ("present", "wanted"),
    [
        (["text", "label"], Columns(text="text")),
        (["id", "prompt"], Columns(text="prompt", id="id")),
        (["image", "text"], Columns(image="image", text="text")),
        (["messages", "source"], Columns(messages="messages")),
        (["images", "videos"], Columns(image="images", video="videos")),
    ],
)
def test_columns_of_the_usual_names_are_found(present, wanted):
    assert Columns().found_in(present) == wanted


@pytest.mark.parametrize(
    ("given", "present", "said"),
    [
        (Columns(), ["text", "prompt"], "'text' and 'prompt' could both be meant"),
        (Columns(), ["text", "messages"], "could both be meant"),
        (Columns(), ["caption", "score"], "there are 'caption', 'score'"),
        (Columns(text="words"), ["text"], "no column 'words'"),
        (Columns(text="text", id="key"), ["text"], "no column 'key'"),
        (Columns(text="text", messages="messages"), ["text", "messages"], "whole chats"),
    ],
)
def test_columns_that_are_missing_or_ambiguous_are_an_error(given, present, said):
    with pytest.raises(ConfigurationError, match=said):
        given.found_in(present)


def test_a_kind_that_is_not_named_is_read_under_its_usual_name():
    found = Columns(image="photo").found_in(["photo", "text", "label"])
    assert found == Columns(image="photo", text="text")


@pytest.mark.parametrize(
    ("given", "present", "lost"),
    [
        (Columns(text="prompt"), ["text", "prompt", "image"], "'text' would not be read"),
        (Columns(image="image"), ["image", "images"], "'images' would not be read"),
        (Columns(), ["image", "question"], "'question' would not be read"),
        (Columns(), ["text", "image_path", "Image 2"], "'image_path', 'Image 2' would not be read"),
        (Columns(text="text"), ["text", "messages"], "'messages' would not be read"),
        (Columns(messages="chat"), ["chat", "text"], "'text' would not be read"),
        (Columns(image="image"), ["image", "userPrompt"], "'userPrompt' would not be read"),
        (Columns(), ["text", "imageUrl"], "'imageUrl' would not be read"),
        (Columns(), ["messages", "system"], "'system' would not be read"),
        (Columns(), ["text", "Instructions", "input"], "'Instructions', 'input' would not be"),
    ],
)
def test_a_column_that_looks_like_a_part_is_never_passed_over_in_silence(given, present, lost):
    with pytest.raises(ConfigurationError, match=lost) as raised:
        given.found_in(present)
    assert "--ignore-column" in str(raised.value)
    left_out = {name for name in present if repr(name) in str(raised.value).partition(" would")[0]}
    read = replace(given, ignored=tuple(left_out)).found_in(present)
    assert set(read.names()) == set(present) - left_out


def test_an_ambiguity_is_settled_by_what_is_ignored():
    found = Columns(ignored=("text",)).found_in(["text", "prompt"])
    assert found.names() == ["prompt"]
    named = Columns(text="prompt", ignored=("text", "image"))
    assert named.found_in(["text", "prompt", "image"]) == named


def test_labels_and_what_a_type_tells_to_be_no_input_may_be_there():
    present = ["text", "label", "category", "prompt_id", "image_width", "answer", "num_images"]
    assert Columns().found_in(present, {"num_images": False}).names() == ["text"]
    with pytest.raises(ConfigurationError, match="'scan' would not be read"):
        Columns().found_in([*present, "scan"], {"num_images": False, "scan": True})


def test_a_column_is_not_both_read_and_ignored():
    with pytest.raises(ConfigurationError, match="'text' cannot be both"):
        Columns(text="text", ignored=("text",)).found_in(["text"])


def test_words_alone_are_a_prompt():
    assert load(Columns(text="text", id="id"), {"text": "Hello", "id": 3}) == ("3", "Hello")


@pytest.mark.parametrize("bad", [None, True, 1.5, ["a"]])
def test_a_row_without_a_usable_id_has_its_number(bad):
    assert load(Columns(text="text", id="id"), {"text": "Hello", "id": bad}).key == "7"


def test_an_id_with_half_a_character_stays_a_text_that_files_can_hold():
    key = load(Columns(text="text", id="id"), {"text": "a", "id": "x\ud800"}).key
    assert key.encode() == b"x\\ud800"


def test_every_form_of_picture_is_the_same_picture(png):
    columns = Columns(image="image", text="text")
    pixels = np.full((40, 40, 3), (5, 90, 200), np.uint8)
    cells = [png(5), {"bytes": png(5), "path": "no/such.png"}, [png(5)], pixels]
    for cell in cells:
        request = to_request(load(columns, {"image": cell, "text": "a"}).value, policy=Policy())
        assert request.images[0].getpixel((0, 0)) == (5, 90, 200)


@pytest.mark.parametrize("cell", ["p.png", {"bytes": None, "path": "p.png"}])
def test_a_path_is_taken_from_the_tables_folder(cell):
    [message] = load(Columns(image="image"), {"image": cell}).value
    assert message["content"] == [{"type": "image", "path": "/data/p.png"}]


def test_a_url_stays_one_so_that_the_policy_decides_about_it():
    [message] = load(Columns(image="image"), {"image": "https://example.org/p.png"}).value
    assert message["content"] == [{"type": "image", "image": "https://example.org/p.png"}]


def test_the_prompt_is_asked_only_where_a_picture_has_no_words(png):
    columns = Columns(image="image", text="text")
    [asked] = load(columns, {"image": png(1), "text": None}, "What?").value
    [own] = load(columns, {"image": png(1), "text": "Mine"}, "What?").value
    assert asked["content"][1] == {"type": "text", "text": "What?"}
    assert own["content"][1] == {"type": "text", "text": "Mine"}
    assert load(columns, {"image": None, "text": "Mine"}, "What?").value == "Mine"


def test_messages_as_a_list_and_as_json_are_one_chat():
    chat = [{"role": "user", "content": [{"type": "image", "path": "p.png"}]}]
    columns = Columns(messages="messages")
    as_list = load(columns, {"messages": chat}).value
    assert as_list == load(columns, {"messages": json.dumps(chat)}).value
    assert as_list[0]["content"][0]["path"] == "/data/p.png"


@pytest.mark.parametrize(
    ("columns", "row"),
    [
        (Columns(text="text"), {"text": None}),
        (Columns(text="text"), {"text": 3}),
        (Columns(image="image"), {"image": None}),
        (Columns(image="image"), {"image": {"bytes": None, "path": None}}),
        (Columns(image="image"), {"image": [None]}),
        (Columns(image="image"), {"image": 3}),
        (Columns(image="image"), {"image": np.zeros((4, 4, 7), np.float64)}),
        (Columns(video="video"), {"video": np.zeros((4, 4, 3), np.uint8)}),
        (Columns(messages="messages"), {"messages": "{"}),
        (Columns(messages="messages"), {"messages": '{"a": NaN}'}),
        (Columns(messages="messages"), {"messages": {"role": "user"}}),
        (Columns(messages="messages"), {}),
    ],
)
def test_a_cell_that_is_no_request_is_an_error_in_its_row(columns, row):
    key, value = load(columns, row)
    assert key == "7"
    assert isinstance(value, UnsupportedContentError)


def test_rows_of_many_files_are_in_order_and_named_by_file_and_number(
    parquet, tmp_path, everything
):
    paths = [
        parquet({"text": ["a", "b", "c"]}, name="x/1.parquet", group=2),
        parquet({"text": ["d"]}, name="x/2.parquet"),
    ]
    source = ParquetSource(paths, tmp_path / "x", Columns(), prompt=None)
    items = list(source.items(everything))
    assert source.rows == 4
    assert [item.number for item in items] == [0, 1, 2, 3]
    assert [item.load() for item in items] == [
        ("1.parquet:0", "a"),
        ("1.parquet:1", "b"),
        ("1.parquet:2", "c"),
        ("2.parquet:0", "d"),
    ]


def test_a_row_of_one_file_has_its_id_or_its_number(parquet, tmp_path, everything):
    path = parquet({"text": ["a", "b"], "id": ["x", None]})
    source = ParquetSource([path], tmp_path, Columns(), prompt=None)
    assert [item.load().key for item in source.items(everything)] == ["x", "1"]


def test_any_wanted_rows_are_found_across_groups_and_batches(parquet, tmp_path, only):
    path = parquet({"text": [f"t{i}" for i in range(100)]}, group=30)
    source = ParquetSource([path], tmp_path, Columns(), prompt=None)
    for wanted in [(0,), (15, 16, 17), (29, 30, 31), (59, 99), tuple(range(100))]:
        found = [(item.number, item.load().value) for item in source.items(only(*wanted))]
        assert found == [(number, f"t{number}") for number in wanted]


def test_a_row_group_without_wanted_rows_is_not_read(parquet, tmp_path, only):
    path = parquet({"text": ["secret" * 50 + str(i) for i in range(40)]}, group=20)
    data = bytearray(path.read_bytes())
    place = data.index(b"secret" * 3)
    data[place - 40 : place + 200] = b"\xff" * 240  # the first group's page
    path.write_bytes(data)
    source = ParquetSource([path], tmp_path, Columns(), prompt=None)
    assert len(list(source.items(only(*range(20, 40))))) == 20
    with pytest.raises(DatasetError, match="cannot be read as Parquet"):
        list(source.items(only(0)))


def test_pictures_as_hugging_face_writes_them_are_read(parquet, tmp_path, png, everything):
    cells = [{"bytes": png(3), "path": "a.png"}, None]
    path = parquet({"image": cells, "text": ["a", "b"]})
    source = ParquetSource([path], tmp_path, Columns(), prompt=None)
    first, second = (item.load().value for item in source.items(everything))
    assert first[0]["content"][0] == {"type": "image", "image": png(3)}
    assert second == "b"


def test_messages_as_lists_of_structs_are_chats(parquet, tmp_path, everything):
    chat = [
        {"role": "user", "content": [{"type": "text", "text": "a", "image": None}], "name": None}
    ]
    path = parquet({"messages": [chat]})
    [item] = ParquetSource([path], tmp_path, Columns(), prompt=None).items(everything)
    assert item.load().value == chat


def test_a_file_that_is_no_parquet_ends_the_run_by_name(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_text("no")
    with pytest.raises(DatasetError, match=r"a\.parquet cannot be read as Parquet"):
        ParquetSource([path], tmp_path, Columns(), prompt=None)


def test_files_of_different_columns_are_refused(parquet, tmp_path):
    paths = [
        parquet({"text": ["a"]}, name="1.parquet"),
        parquet({"prompt": ["b"]}, name="2.parquet"),
    ]
    with pytest.raises(ConfigurationError, match="other columns"):
        ParquetSource(paths, tmp_path, Columns(), prompt=None)


def test_columns_of_pictures_and_of_numbers_are_told_by_their_types(parquet, tmp_path, png):
    cells = [{"bytes": png(3), "path": "a.png"}]
    path = parquet({"text": ["a"], "num_images": [1], "has_prompt": [True], "input": [None]})
    assert ParquetSource([path], tmp_path, Columns(), prompt=None).columns.names() == ["text"]
    for scan in (cells, [cells], [png(3)]):
        path = parquet({"text": ["a"], "scan": scan})
        with pytest.raises(ConfigurationError, match="'scan' would not be read"):
            ParquetSource([path], tmp_path, Columns(), prompt=None)


def test_a_type_that_is_not_of_arrow_tells_nothing():
    assert media_by_type(["a", "b", "c"], [object, None, pa.int8()]) == {"c": False}


def unreadable() -> pa.Array:
    """A column of text of which the second value is no UTF-8, as careless writers leave it."""
    held = pa.array([b"Row 0", b"Row \xff", b"Row 2"], pa.binary())
    return pa.Array.from_buffers(pa.string(), 3, held.buffers())


@pytest.mark.parametrize("name", ["text", "id"])
def test_a_value_that_is_no_text_is_an_error_of_its_row_alone(tmp_path, everything, name):
    columns = {"text": pa.array(["a", "b", "c"])} | {name: unreadable()}
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    source = ParquetSource([tmp_path / "t.parquet"], tmp_path, Columns(), prompt=None)
    first, second, third = [item.load() for item in source.items(everything)]
    assert isinstance(second.value, UnsupportedContentError)
    assert (second.key, "Row" in str(second.value)) == ("1", False)
    assert isinstance(first.value, str)
    assert isinstance(third.value, str)


def test_a_file_whose_name_is_no_text_is_read(parquet, tmp_path, everything):
    path = tmp_path / "\udcff.parquet"
    parquet({"text": ["a"]}).rename(path)
    source = ParquetSource([path], tmp_path, Columns(), prompt=None)
    assert [item.load().value for item in source.items(everything)] == ["a"]


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
    assert "'foo' would be lost" in str(rows[2].value)
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
    assert "`question` is not shown to the model" in str(refused)
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
    known = {"rows": 99, "digest": first.digest}
    assert JsonlSource(path, Columns(), prompt=None, known=known).rows == 99
    path = jsonl(["a", "b", "c"])
    assert JsonlSource(path, Columns(), prompt=None, known=known).rows == 3
