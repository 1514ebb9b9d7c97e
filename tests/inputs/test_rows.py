from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guardrail.bulk.tables import Columns, JsonlSource
from guardrail.cli.calibrate import benign_lines
from guardrail.errors import DatasetError
from guardrail.evaluation.items import load_items
from guardrail.inputs.media import VIDEO
from guardrail.inputs.messages import to_request
from guardrail.inputs.parts import MEDIA
from guardrail.inputs.rows import picture_files, placed, video_files, words
from guardrail.policy import Policy

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


def test_a_part_taken_from_the_folder_stays_of_its_medium(monkeypatch):
    sound = replace(VIDEO, name="sound")
    monkeypatch.setitem(MEDIA, "audio", (sound, ("path",)))
    (message,) = placed(chat({"type": "audio", "path": "a.wav"}), FOLDER)
    assert message["content"][0] == {"type": "audio", "path": "data/a.wav"}


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


class _All:
    def row(self, number):
        return True

    any = None


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CHAT = [{"role": "user", "content": "Hi"}]
LABELS = {"licence": "MIT", "tags": ["a"], "metadata": {"b": 1}, "pair": 3, "notes": None}


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What the readers of `evaluate`, `calibrate` and `score` say against a row; None: nothing."""
    folder = tmp_path_factory.mktemp("rows")
    path = folder / "rows.jsonl"
    for name in ("p.png", "v.mp4"):
        (folder / name).touch()

    def told(row):
        found = []
        path.write_text(json.dumps(row))
        for read in (lambda: load_items([path]), lambda: list(benign_lines(path))):
            try:
                read()
            except DatasetError as error:
                found.append(str(error).removeprefix(f"{path}, line 1: "))
            else:
                found.append(None)
        path.write_text(json.dumps(row) + '\n"readable"\n')
        first, _ = JsonlSource(path, Columns(), prompt=None).items(_All())
        value = first.load().value
        return [*found, str(value) if isinstance(value, Exception) else None]

    return told


@pytest.mark.parametrize(
    "row",
    [
        {"text": "a"},
        {"text": "a", **LABELS},
        {"text": "a", "image": "p.png", "video": ["v.mp4"], "statement": "b", "id": 7},
        {"image": ["p.png"], "text": None, "category": 3, "source": "s", "language": "en"},
        {"messages": CHAT, "tools": [TOOL], "image": None},
        {"text": "a", "tools": [TOOL]},
        {"text": "a", "question": "in other words"},
        {"text": "a", "id": 1.5, "unknown": None},
    ],
)
def test_a_row_that_one_command_takes_all_take(said, row):
    assert said(row | {"label": "Benign"}) == [None] * 3


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({}, "a row has `text`, `image` or `video`, or `messages`"),
        ({"text": "a", "audio": "a.mp3", "system": "s"}, "'audio', 'system' would be lost"),
        ({"text": "a", "messages": CHAT}, "leave `text`, `image` and `video` out"),
        ({"image": "p.png", "question": "What?"}, "`question` is not shown to the model"),
        ({"text": 3}, "`text`: Input should be a valid string"),
        ({"messages": "a"}, "`messages`: Input should be a valid list"),
        ({"messages": ["a"]}, "`messages.0`: Input should be a valid dictionary"),
        ({"text": "a", "image": 3}, "`image`: Input should be a valid list"),
        ({"text": "a", "tools": TOOL}, "`tools`: Input should be a valid list"),
        ({"text": "a", "id": ["x"]}, "`id`: Input should be a valid string"),
        ({"text": "a", "category": True}, "`category`: Input should be a valid string"),
    ],
)
def test_a_row_that_one_command_refuses_all_refuse_with_the_same_words(said, row, reason):
    first, *others = said(row | {"label": "safe"})
    assert reason in first
    assert others == [first] * 2


_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.sampled_from(["p.png", "v.mp4"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.just("role"), inner),
    max_leaves=3,
)
_NAMES = st.sampled_from(
    "text image video messages tools statement id category source question tags system".split()
)
_PLAIN = st.fixed_dictionaries({}, optional={"text": st.text("ab"), "image": st.just("p.png")})


@given(plain=_PLAIN, odd=st.dictionaries(_NAMES, _VALUES, max_size=2))
def test_any_row_is_taken_or_refused_by_all_alike(said, plain, odd):
    assert len(set(said(plain | odd | {"label": "safe"}))) == 1


def test_tools_come_with_the_messages_to_every_command(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"text": "a", "tools": [TOOL], "label": "safe"}))
    (item,), ((_, asked),) = load_items([path]), benign_lines(path)
    (row,) = JsonlSource(path, Columns(), prompt=None).items(_All())
    requests = [to_request(value, policy=Policy()) for value in (asked, row.load().value)]
    assert requests == [item.request(Policy())] * 2
    assert requests[0].tools == (TOOL,)
