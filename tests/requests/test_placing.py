from __future__ import annotations

from pathlib import Path

import pytest

from guardrail.requests.placing import picture_files, placed, video_files, words

FOLDER = Path("data")


def chat(part):
    return [{"role": "user", "content": [part, {"type": "text", "text": "Look"}]}]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "p.png"},
        {"type": "image", "path": "p.png"},
        {"type": "image", "url": "p.png"},
        {"type": "image_url", "image_url": "p.png"},
        {"type": "image_url", "image_url": {"url": "p.png", "detail": "low"}},
        {"type": "input_image", "image_url": "p.png"},
    ],
)
def test_a_relative_path_is_taken_from_the_folder_in_every_form(part):
    moved = placed(chat(part), FOLDER)
    assert moved[0]["content"][0] == {"type": "image", "path": "data/p.png"}
    assert picture_files(moved) == ["data/p.png"]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "video", "video": "v.mp4"},
        {"type": "video", "path": "v.mp4"},
        {"type": "video", "url": "v.mp4"},
        {"type": "video_url", "video_url": "v.mp4"},
        {"type": "video_url", "video_url": {"url": "v.mp4"}},
        {"type": "input_video", "video_url": "v.mp4"},
    ],
)
def test_a_video_is_taken_from_the_folder_likewise(part):
    moved = placed(chat(part), FOLDER)
    assert moved[0]["content"][0] == {"type": "video", "path": "data/v.mp4"}
    assert (video_files(moved), picture_files(moved)) == (["data/v.mp4"], [])


def test_listed_frames_are_taken_from_the_folder_one_by_one():
    frames = ["a.png", "https://example.org/b.png", "iVBORw0KGgo=", "c.png"]
    moved = placed(chat({"type": "video", "video": frames, "fps": 2}), FOLDER)
    (part, _) = moved[0]["content"]
    assert part == {"type": "video", "video": ["data/a.png", *frames[1:3], "data/c.png"], "fps": 2}
    assert video_files(moved) == ["data/a.png", "data/c.png"]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "image": "https://example.org/p.png"},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}},
        {"type": "image", "base64": "iVBORw0KGgo="},
        {"type": "image", "image": "p.png", "path": "q.png"},  # refused when it is read
        {"type": "image_url", "image_url": {"url": "p.png", "odd": 1}},  # likewise
        {"type": "video", "video": "https://example.org/v.mp4"},
        {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}},
        {"type": "video", "base64": "AAAAHGZ0eXA="},
        {"type": "video", "video": "AAAAHGZ0eXBpc29t"},  # base64 of an MP4 file's first bytes
        {"type": ["video"], "video": "v.mp4"},
        "just text",
    ],
)
def test_everything_else_stays_as_it_is(part):
    assert placed(chat(part), FOLDER)[0]["content"][0] == part


def test_an_absolute_path_stays_absolute():
    (message,) = placed(chat({"type": "image", "image": "/tmp/p.png"}), FOLDER)
    assert message["content"][0]["path"] == "/tmp/p.png"


def test_words_are_those_of_every_turn():
    turns = [
        {"role": "system", "content": "a"},
        {"role": "user", "content": ["b", {"type": "text", "text": "c"}, {"type": "image"}]},
        {"role": "assistant", "content": None},
    ]
    assert words(turns) == ["a", "b", "c"]
