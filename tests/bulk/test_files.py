from __future__ import annotations

import os

import pytest

from guardrail.bulk import files
from guardrail.bulk.files import FilesSource
from guardrail.bulk.listing import list_folder
from guardrail.errors import UnsupportedContentError


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
    monkeypatch.setattr(files, "_MAX_TEXT", 5)
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
    assert made.now() == made.digest()
    (tmp_path / "data" / "b.txt").write_text("b")
    assert made.now() != made.digest()
