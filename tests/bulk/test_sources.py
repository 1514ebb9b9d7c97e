from __future__ import annotations

import os

import pytest

from guardrail.bulk import sources as module
from guardrail.bulk.sources import FilesSource, kind_of, list_folder, open_source
from guardrail.bulk.tables import Columns
from guardrail.errors import ConfigurationError, DatasetError, UnsupportedContentError


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


@pytest.fixture
def source(tmp_path):
    def make(prompt=None):
        (tmp_path / "out").mkdir(exist_ok=True)
        return FilesSource(list_folder(tmp_path / "data", tmp_path / "out"), prompt=prompt)

    (tmp_path / "data").mkdir()
    return make


def test_pictures_videos_and_texts_are_requests(source, tmp_path, everything):
    data = tmp_path / "data"
    (data / "a.png").touch()
    (data / "b.mp4").touch()
    (data / "c.txt").write_text("\ufeffHello\n")
    loaded = [item.load() for item in source("What?").items(everything)]
    assert [key for key, _ in loaded] == ["a.png", "b.mp4", "c.txt"]
    asked = {"type": "text", "text": "What?"}
    assert loaded[0].value[0]["content"] == [{"type": "image", "path": str(data / "a.png")}, asked]
    assert loaded[1].value[0]["content"] == [{"type": "video", "path": str(data / "b.mp4")}, asked]
    assert loaded[2].value == "Hello\n"


def test_a_file_that_cannot_be_read_is_a_row_with_an_error(
    source, tmp_path, everything, monkeypatch
):
    data = tmp_path / "data"
    (data / "a.pdf").touch()
    (data / "b.txt").write_bytes(b"\xff\xfe")
    (data / "c.txt").symlink_to(data / "nothing")
    os.mkfifo(data / "d.txt")
    (data / "e.txt").write_text("far too long")
    monkeypatch.setattr(module, "_MAX_TEXT", 5)
    loaded = [item.load() for item in source().items(everything)]
    assert [key for key, _ in loaded] == ["a.pdf", "b.txt", "c.txt", "d.txt", "e.txt"]
    assert all(isinstance(value, UnsupportedContentError) for _, value in loaded)
    assert "'.pdf' is not read" in str(loaded[0].value)


def test_only_wanted_files_are_looked_at_and_keep_their_numbers(source, tmp_path, only):
    for name in "abcd":
        (tmp_path / "data" / f"{name}.png").touch()
    items = list(source().items(only(1, 3)))
    assert [(item.number, item.load().key) for item in items] == [(1, "b.png"), (3, "d.png")]


def test_a_new_look_sees_what_changed(source, tmp_path):
    (tmp_path / "data" / "a.txt").write_text("a")
    made = source()
    assert made.now() == made.digest
    (tmp_path / "data" / "b.txt").write_text("b")
    assert made.now() != made.digest


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "data"
    (made / "b" / "deep").mkdir(parents=True)
    (made / ".hidden").mkdir()
    names = ["c.png", "a.txt", "b/z.mp4", "b/deep/y.jpg", "b/a.png", "README.md", "b/Thumbs.db"]
    for name in [*names, ".hidden/x.png", ".dot.png", "two\nlines.png", "readme.png"]:
        (made / name).write_bytes(name.encode())
    return made


SHOWN = ["a.txt", "b/a.png", "b/deep/y.jpg", "b/z.mp4", "c.png", "readme.png", "two\nlines.png"]


@pytest.mark.parametrize("run", [1, 2, 3, 100])
def test_files_are_sorted_over_however_many_runs_memory_holds(folder, out, run):
    listing = list_folder(folder, out, run=run)
    assert [listed.path for listed in listing] == SHOWN
    assert listing.count == len(SHOWN)
    assert listing.digest == list_folder(folder, out).digest
    assert [listed.size for listed in listing] == [len(name) for name in SHOWN]


def test_a_kept_list_is_in_its_place_and_no_other_file_is_left(folder, out):
    listing = list_folder(folder, out)
    again = list_folder(folder, out)
    listing.keep()
    again.keep()
    assert [path.name for path in out.iterdir()] == ["_listing.jsonl"]
    assert [listed.path for listed in listing] == SHOWN
    list_folder(folder, out).discard()
    assert [path.name for path in out.iterdir()] == ["_listing.jsonl"]


def test_the_digest_follows_names_sizes_and_times(folder, out):
    digests = {list_folder(folder, out).digest}
    (folder / "c.png").write_bytes(b"longer than before")
    digests.add(list_folder(folder, out).digest)
    os.utime(folder / "a.txt", ns=(1, 1))
    digests.add(list_folder(folder, out).digest)
    (folder / "new.png").touch()
    digests.add(list_folder(folder, out).digest)
    assert len(digests) == 4


def test_a_link_to_a_folder_is_refused_and_a_link_to_nowhere_is_a_row(folder, out):
    (folder / "gone.png").symlink_to(folder / "nothing.png")
    (folder / "ring.png").symlink_to(folder / "ring.png")
    found = {listed.path: listed.size for listed in list_folder(folder, out)}
    assert found["gone.png"] == found["ring.png"] == -1
    (folder / "round").symlink_to(folder)
    with pytest.raises(DatasetError, match="round is a link to a folder"):
        list_folder(folder, out)
    assert len(list(out.iterdir())) == 1  # the first call's alone


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.PNG", "image"),
        ("a.webm", "video"),
        ("a.txt", "text"),
        ("a.parquet", "parquet"),
        ("a.jsonl", "jsonl"),
        ("a.pdf", "other"),
        ("png", "other"),
    ],
)
def test_a_file_is_what_its_ending_says(name, kind):
    assert kind_of(name) == kind
