from __future__ import annotations

import pytest

from guardrail.bulk.columns import Columns
from guardrail.bulk.sources import open_source
from guardrail.errors import ConfigurationError, DatasetError


@pytest.fixture
def out(tmp_path):
    made = tmp_path / "out"
    made.mkdir()
    return made


def touched(folder, *names):
    folder.mkdir(exist_ok=True)
    for name in names:
        (folder / name).write_text('"a"\n')
    return folder


def test_a_path_is_opened_as_what_it_is(tmp_path, out, parquet, jsonl):
    table = parquet({"text": ["a", "b"]}, name="tables/x.parquet")
    (table.parent / "README.md").touch()
    kinds = [
        open_source(path, out, Columns()).kind
        for path in (touched(tmp_path / "f", "a.png"), table, table.parent, jsonl(["a"]))
    ]
    assert kinds == ["files", "parquet", "parquet", "jsonl"]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), "no row"),
        (("a.png", "b.parquet"), "holds image and parquet"),
        (("a.jsonl", "b.parquet"), "holds jsonl and parquet"),
        (("a.jsonl",), "name one of them"),
    ],
)
def test_a_folder_that_could_be_several_things_is_refused(tmp_path, out, names, said):
    with pytest.raises(DatasetError, match=said):
        open_source(touched(tmp_path / "f", *names), out, Columns())


@pytest.mark.parametrize("names", [("a.jsonl",), ()])
def test_a_refused_folder_leaves_nothing_behind(tmp_path, out, names):
    with pytest.raises(DatasetError):
        open_source(touched(tmp_path / "f", *names), out, Columns())
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("name", ["rows.csv", "nothing.jsonl"])
def test_a_file_of_another_kind_or_none_is_refused(tmp_path, out, name):
    touched(tmp_path, "rows.csv")
    with pytest.raises(DatasetError, match=name):
        open_source(tmp_path / name, out, Columns())


def test_columns_of_a_folder_of_files_are_an_error(tmp_path, out):
    with pytest.raises(ConfigurationError, match="without columns"):
        open_source(touched(tmp_path / "f", "a.png"), out, Columns(text="text"))


def test_verdicts_do_not_go_into_the_folder_that_is_scored(tmp_path):
    folder = touched(tmp_path / "f", "a.png")
    (folder / "out").mkdir()
    for place in (folder / "out", folder):
        with pytest.raises(ConfigurationError, match="would be scored, too"):
            open_source(folder, place, Columns())
