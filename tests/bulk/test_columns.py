from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from guardrail.bulk.columns import Columns
from guardrail.errors import ConfigurationError, UnsupportedContentError
from guardrail.policy import Policy
from guardrail.requests.messages import to_request

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
