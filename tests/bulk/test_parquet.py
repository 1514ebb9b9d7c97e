from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from guardrail.bulk.columns import Columns
from guardrail.bulk.parquet import ParquetSource, media_by_type
from guardrail.errors import ConfigurationError, DatasetError, UnsupportedContentError


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
