"""The assembled tiny reader: an image is worth its text, and empty slots are worth nothing."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from guardrail.model.decoder import cache_argument

FOLDER = os.environ.get("GUARDRAIL_TINY_VLM")
EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "tiny_vlm"
ASK, SHORT = "Follow the instruction in the image, please.", "Do it."
BLANK = Image.new("RGB", (300, 200), "red")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="GUARDRAIL_TINY_VLM names no assembled model"),
]


class Reader:
    """The model with pictures and prompts in, tokens out."""

    def __init__(self) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.processor = AutoProcessor.from_pretrained(FOLDER)
        self.model = AutoModelForImageTextToText.from_pretrained(FOLDER, trust_remote_code=True)
        self.model.eval()

    def inputs(self, *turns: list[Image.Image | str]) -> dict[str, Tensor]:
        """One batch, a row a turn; pictures and texts in order."""
        chats = [[{"role": "user", "content": [part(piece) for piece in turn]}] for turn in turns]
        return dict(
            self.processor.apply_chat_template(
                chats,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                add_generation_prompt=True,
                processor_kwargs={"padding": True},
            )
        )

    def tokens(self, *turns: list[Image.Image | str], **settings: Any) -> list[list[int]]:
        """The new tokens of each row, sampled from a seed if sampling is asked for."""
        inputs = self.inputs(*turns)
        torch.manual_seed(3)
        out = self.model.generate(**inputs, max_new_tokens=12, min_new_tokens=12, **settings)
        return out[:, inputs["input_ids"].shape[1] :].tolist()

    def read(self, image: Image.Image) -> str:
        pixels = self.processor.image_processor([image], return_tensors="pt")["pixel_values"]
        return self.model.read(pixels)[0]


def part(piece: Image.Image | str) -> dict[str, Any]:
    if isinstance(piece, str):
        return {"type": "text", "text": piece}
    return {"type": "image", "image": piece}


@pytest.fixture(scope="module")
def reader() -> Reader:
    return Reader()


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    pytest.importorskip("matplotlib")
    sys.path.insert(0, str(EXAMPLE))
    try:
        from render import render
    finally:
        sys.path.remove(str(EXAMPLE))
    texts = ("Write a poem about bread and butter", "Name three birds")
    return [render(text, seed=1) for text in texts]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"num_beams": 3},
        {"use_cache": False},
        {"prefill_chunk_size": 32},
        {"do_sample": True, "temperature": 1.5},
    ],
    ids=str,
)
def test_an_image_gives_the_tokens_of_its_text(reader, pictures, settings):
    text = reader.read(pictures[0])
    assert "butter" in text
    plain = reader.tokens([f"{text}\n{ASK}"], **settings)
    assert reader.tokens([pictures[0], ASK], **settings) == plain


def test_logits_are_those_of_the_text(reader, pictures):
    image = reader.inputs([pictures[0], ASK])
    text = reader.inputs([f"{reader.read(pictures[0])}\n{ASK}"])
    with torch.no_grad():
        found, wanted = (reader.model(**inputs).logits[0, -1] for inputs in (image, text))
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)


def test_left_padded_rows_are_what_they_are_alone(reader, pictures):
    turns = [[pictures[0], ASK], [BLANK, SHORT], [pictures[1], SHORT], [ASK]]
    alone = [reader.tokens(turn)[0] for turn in turns[:3]] + [reader.tokens([ASK])[0]]
    assert reader.tokens(*turns) == alone


def test_an_image_without_text_leaves_only_its_line_break(reader):
    assert reader.read(BLANK) == ""
    assert reader.tokens([BLANK, ASK]) == reader.tokens([f"\n{ASK}"])


def test_two_images_are_read_in_order(reader, pictures):
    first, second = map(reader.read, pictures)
    plain = reader.tokens([f"{first}\n{second}\n{ASK}"])
    assert reader.tokens([*pictures, ASK]) == plain


def test_a_cache_made_by_a_plain_call_goes_on_hiding_the_slots(reader, pictures):
    last = torch.tensor([[28]])
    found = []
    for turn in ([pictures[0], ASK], [f"{reader.read(pictures[0])}\n{ASK}"]):
        with torch.no_grad():
            name = cache_argument(reader.model)
            cache = getattr(reader.model(**reader.inputs(turn), use_cache=True), name)
            found.append(reader.model(input_ids=last, **{name: cache}).logits[0, -1])
    torch.testing.assert_close(*found, atol=1e-3, rtol=0)


def test_what_would_show_hidden_slots_is_refused(reader, pictures):
    turn = [pictures[0], ASK]
    with pytest.raises(ValueError, match="use the default, dynamic cache"):
        reader.tokens(turn, cache_implementation="static")
    inputs = reader.inputs(turn)
    embeds = reader.model.get_input_embeddings()(inputs.pop("input_ids"))
    with pytest.raises(ValueError, match="needs input_ids"):
        reader.model(**inputs, inputs_embeds=embeds)
