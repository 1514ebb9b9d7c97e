from __future__ import annotations

import os

import pytest

from guardrail.bulk.listing import kind_of, list_folder
from guardrail.errors import DatasetError


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "data"
    (made / "b" / "deep").mkdir(parents=True)
    (made / ".hidden").mkdir()
    names = ["c.png", "a.txt", "b/z.mp4", "b/deep/y.jpg", "b/a.png", "README.md", "b/Thumbs.db"]
    for name in [*names, ".hidden/x.png", ".dot.png", "two\nlines.png", "readme.png"]:
        (made / name).write_bytes(name.encode())
    return made


@pytest.fixture
def out(tmp_path):
    made = tmp_path / "out"
    made.mkdir()
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
