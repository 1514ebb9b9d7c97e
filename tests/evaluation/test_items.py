from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from guardrail.errors import DatasetError, InputError
from guardrail.evaluation.items import DEFAULT_PROMPT, VIDEO_PROMPT, EvalItem, load_items
from guardrail.policy import Limits, Policy

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, *rows: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


@pytest.fixture
def pictures(tmp_path, picture) -> Path:
    for name in ("a.png", "b.png"):
        picture(len(name)).save(tmp_path / name)
    return tmp_path


def test_a_line_is_read_with_everything_that_describes_it(tmp_path):
    path = write(
        tmp_path / "set.jsonl",
        {
            "id": "x",
            "text": "How?",
            "label": "harmful",
            "category": "c",
            "source": "s",
            "licence": "MIT",
            "language": "en",
            "question": "in other words",
        },
        "",
        {"text": "What?", "label": "Benign", "id": 7},
        {"text": "Why?", "label": "safe"},
    )
    first, second, third = load_items([path])
    assert (first.id, first.label, first.category, first.source) == ("x", "harmful", "c", "s")
    assert first.text == "How?"
    assert first.request(Policy()).messages[0].parts[0].text == "How?"
    assert (second.id, second.label, second.source) == ("7", "harmless", "set")
    assert (third.id, third.label) == ("set-4", "harmless")


@pytest.mark.parametrize("key", ["id", "category", "source", "statement", "text"])
def test_a_lone_surrogate_that_no_report_could_hold_is_refused(tmp_path, key):
    line = json.dumps({"text": "How?", "label": "safe"} | {key: "a\ud800"})
    path = write(tmp_path / "set.jsonl", line)
    with pytest.raises(DatasetError, match=r"set.jsonl, line 1: .*a\\ud800.*lone surrogate"):
        load_items([path])


def test_pictures_and_folders_named_like_notes_are_inputs(tmp_path, picture):
    own = tmp_path / "own"
    (own / "harmful" / "licence-fraud").mkdir(parents=True)
    (own / "harmless").mkdir()
    picture(1).save(own / "harmful" / "license-plate.png")
    (own / "harmful" / "license-plate.txt").write_text("Whose car is this?")
    picture(2).save(own / "harmful" / "licence-fraud" / "readme.png")
    (own / "harmless" / "README.md").write_text("about these pictures")
    (own / "harmless" / "LICENSE").write_text("CC0")
    found = {item.id: item for item in load_items([own])}
    assert set(found) == {"harmful/license-plate.png", "harmful/licence-fraud/readme.png"}
    assert found["harmful/license-plate.png"].text == "Whose car is this?"
    assert found["harmful/licence-fraud/readme.png"].category == "licence-fraud"


def test_pictures_are_found_beside_the_file_and_read_only_when_asked_for(pictures):
    path = write(
        pictures / "set.jsonl",
        {"text": "Look", "image": "a.png", "label": "safe", "statement": "STOP"},
        {"image": ["a.png", "b.png"], "label": "unsafe"},
    )
    first, second = load_items([path])
    assert first.text == "Look\nSTOP"
    assert first.images == (str(pictures / "a.png"),)
    assert len(second.images) == 2
    assert second.text == ""
    request = second.request(Policy(local_files=False))
    assert [image.size for image in request.images] == [(56, 40)] * 2
    assert first.request(Policy()).modality == "image"


def test_a_whole_chat_keeps_its_turns_tools_and_pictures(pictures):
    chat = [
        {"role": "system", "content": "Be kind."},
        {
            "role": "user",
            "content": [
                {"type": "image_url", "image_url": {"url": "b.png"}},
                {"type": "text", "text": "Look"},
            ],
        },
    ]
    tool = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
    path = write(
        pictures / "chats.jsonl",
        {"messages": chat, "label": "safe", "tools": [tool], "statement": ["A", "B"]},
    )
    (item,) = load_items([path])
    assert item.text == "Be kind.\nLook\nA\nB"
    assert item.images == (str(pictures / "b.png"),)
    request = item.request(Policy())
    assert [m.role for m in request.messages] == ["system", "user"]
    assert len(request.images) == len(request.tools) == 1


def test_the_policys_limits_hold_for_an_item(tmp_path):
    (item,) = load_items([write(tmp_path / "s.jsonl", {"text": "a" * 10, "label": "safe"})])
    with pytest.raises(InputError, match="text_chars"):
        item.request(Policy(limits=Limits(text_chars=9)))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "not JSON"),
        ('{"text": "a", "text": "b", "label": "safe"}', "twice"),
        ('"a"', "a line is a JSON object"),
        ({"text": "a"}, "label"),
        ({"text": "a", "label": "bad"}, "'bad' is none of harmful"),
        ({"text": "a", "label": 1}, "1 is none of"),
        ({"label": "safe"}, "`text`, `image` or `video`"),
        ({"text": 3, "label": "safe"}, "text"),
        ({"text": "a", "label": "safe", "audio": "a.mp3"}, "'audio' would be lost"),
        ({"text": "a", "label": "safe", "video": "v.mp4"}, "there is no video"),
        ({"text": "a", "label": "safe", "video": ["a.png", 3]}, "video"),
        ({"text": "a", "label": "safe", "system": "s"}, "'system' would be lost"),
        ({"image": "none.png", "label": "safe"}, "there is no picture"),
        ({"question": "What?", "image": "a.png", "label": "safe"}, "`question` is not shown"),
        (
            {"messages": [{"role": "user", "content": "a"}], "text": "b", "label": "safe"},
            "leave `text`, `image` and `video` out",
        ),
        ({"messages": "a", "label": "safe"}, "messages"),
    ],
)
def test_a_line_that_cannot_be_used_is_named(pictures, row, reason):
    path = write(pictures / "set.jsonl", {"text": "fine", "label": "safe"}, row)
    with pytest.raises(DatasetError) as error:
        load_items([path])
    assert "set.jsonl, line 2" in str(error.value)
    assert reason in str(error.value)


def test_ids_are_made_unique(tmp_path):
    rows = [
        {"text": t, "label": "safe", "id": i}
        for t, i in zip("abcd", ["x", "x", "x#2", "x"], strict=True)
    ]
    names = [item.id for item in load_items([write(tmp_path / "s.jsonl", *rows)])]
    assert names[0] == "x"
    assert len(set(names)) == 4


def test_a_folder_of_files_is_read_whole_and_named_by_file(tmp_path):
    write(tmp_path / "b.jsonl", {"text": "b", "label": "safe"})
    write(tmp_path / "a.jsonl", {"text": "a", "label": "unsafe"})
    write(tmp_path / "below" / "c.jsonl", {"text": "c", "label": "safe"})
    (tmp_path / "README.md").write_text("about")
    assert [(i.text, i.source) for i in load_items([tmp_path])] == [("a", "a"), ("b", "b")]


@pytest.fixture
def labelled(tmp_path, picture) -> Path:
    folder = tmp_path / "own"
    for place in ("Harmful/weapons", "benign"):
        (folder / place).mkdir(parents=True)
    picture(1).save(folder / "Harmful/weapons/1.png")
    (folder / "Harmful/weapons/1.txt").write_text("Do what it says.\n")
    (folder / "Harmful/weapons/2.txt").write_text("How do I?")
    picture(2).save(folder / "benign/3.JPG", format="JPEG")
    (folder / "benign/.DS_Store").write_text("")
    (folder / "README").write_text("about")
    return folder


def test_a_folder_of_labels_gives_pictures_with_prompts_and_texts(labelled):
    items = load_items([labelled])
    assert [(i.id, i.label, i.category, i.text, len(i.images)) for i in items] == [
        ("Harmful/weapons/1.png", "harmful", "weapons", "Do what it says.", 1),
        ("Harmful/weapons/2.txt", "harmful", "weapons", "How do I?", 0),
        ("benign/3.JPG", "harmless", "", DEFAULT_PROMPT, 1),
    ]
    assert {item.source for item in items} == {"own"}
    assert load_items([labelled], prompt="Look")[2].text == "Look"
    assert [len(item.request(Policy()).images) for item in items] == [1, 0, 1]


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        ("benign/sound.mp3", "sound.mp3 would be lost"),
        ("benign/empty.txt", "is empty"),
        ("other/x.txt", "'other' beside them"),
        ("benign/a/b/c.txt", "one level of categories"),
        ("list.jsonl", "JSONL files and the folder"),
    ],
)
def test_a_folder_with_something_nobody_reads_is_refused(labelled, make, reason):
    path = labelled / make
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("")
    with pytest.raises(DatasetError, match=reason):
        load_items([labelled])


@pytest.fixture
def film(tmp_path, picture):
    """`film(path)`: an animated GIF of three pictures, which is a video by its content."""

    def make(path: Path) -> Path:
        first, *others = (picture(seed) for seed in range(3))
        path.parent.mkdir(parents=True, exist_ok=True)
        first.save(path, format="GIF", save_all=True, append_images=others, duration=500)
        return path

    return make


def test_videos_are_found_beside_the_file_and_in_chats(tmp_path, film):
    film(tmp_path / "v.mp4")
    part = {"type": "video_url", "video_url": {"url": "v.mp4"}}
    path = write(
        tmp_path / "set.jsonl",
        {"text": "Look", "video": "v.mp4", "label": "safe"},
        {"messages": [{"role": "user", "content": [part]}], "label": "unsafe"},
    )
    items = load_items([path])
    assert len(items) == 2
    for item in items:
        assert item.videos == (str(tmp_path / "v.mp4"),)
        assert item.images == ()
        request = item.request(Policy(local_files=False))
        assert request.modality == "video"
        (video,) = request.videos
        assert video.clip.times == (0.0, 0.5, 1.0)


def test_a_folder_of_labels_may_hold_videos_with_their_prompts(labelled, film):
    film(labelled / "benign/4.MOV")
    film(labelled / "Harmful/5.mp4")
    (labelled / "Harmful/5.txt").write_text("Do what it says.")
    found = {item.id: item for item in load_items([labelled])}
    plain, asked = found["benign/4.MOV"], found["Harmful/5.mp4"]
    assert (plain.text, asked.text) == (VIDEO_PROMPT, "Do what it says.")
    assert plain.videos == (str(labelled / "benign/4.MOV"),)
    assert asked.request(Policy()).modality == "video"
    named = {item.id: item.text for item in load_items([labelled], prompt="Look")}
    assert named["benign/4.MOV"] == "Look"


def test_no_input_is_an_error(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(DatasetError, match="no input"):
        load_items([tmp_path / "empty.jsonl"])
    with pytest.raises(DatasetError, match="no such file"):
        load_items([tmp_path / "nowhere"])
    (tmp_path / "bare").mkdir()
    with pytest.raises(DatasetError, match="neither"):
        load_items([tmp_path / "bare"])


def test_an_item_of_ones_own_needs_no_file(picture):
    content = [{"type": "image", "image": picture(1)}, {"type": "text", "text": "Look"}]
    item = EvalItem(
        id="a", label="harmful", messages=[{"role": "user", "content": content}], text="Look"
    )
    assert item.request(Policy()).offset_kind == "image"
