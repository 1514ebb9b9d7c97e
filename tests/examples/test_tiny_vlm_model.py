"""The tiny VLM: what is seen stands in the prompt as embeddings, and empty slots are worth nothing.

Most tests run on a model of random weights, made here, and as slow ones on the assembled model.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from guardrail.model.decoder import cache_argument
from tests.tiny_vlm import PHOTOGRAPHS, module

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    Turn = Sequence[Image.Image | str]

pytest.importorskip("scipy")

FOLDER = os.environ.get("GUARDRAIL_TINY_VLM")
ASK, SHORT = "Follow the instruction in the image, please.", "Do it."
BLANK = Image.new("RGB", (300, 200), "red")
POEM, BIRDS, PAGE = (
    "Write a poem about bread and butter",
    "Name three birds",
    "The quick brown dog jumps over the lazy fox and plays by the river bank all day. " * 4,
)


class VLM:
    """A model with pictures and prompts in, tokens out."""

    model: Any

    def picture(self, text: str) -> Image.Image:
        """One that shows the text."""
        raise NotImplementedError

    def inputs(self, *turns: Turn) -> dict[str, Tensor]:
        """One batch, a row a turn; pictures and texts in order."""
        raise NotImplementedError

    def pixels(self, image: Image.Image) -> Tensor:
        return self.inputs([image])["pixel_values"]

    def read(self, image: Image.Image) -> str:
        return self.model.read(self.pixels(image))[0]

    def features(self, image: Image.Image) -> Tensor:
        """What fills the slots of an image, without the empty ones, which come last."""
        (rows,) = self.model.get_image_features(self.pixels(image)).pooler_output
        full = (rows != 0).any(-1)
        assert full.tolist() == sorted(full.tolist(), reverse=True)
        return rows[full]

    def text(self, words: str) -> Tensor:
        """The embeddings of words."""
        ids = self.model.model.multi_modal_projector.tokenizer.encode(
            words, add_special_tokens=False
        ).ids
        return self.model.get_input_embeddings()(torch.tensor(ids, dtype=torch.long))

    @torch.no_grad()
    def by_hand(self, turn: Turn) -> Tensor:
        """The prompt's embeddings, images without their empty slots: (1, length, d_model)."""
        ids = self.inputs(turn)["input_ids"][0]
        images = iter([self.features(piece) for piece in turn if not isinstance(piece, str)])
        embed, config = self.model.get_input_embeddings(), self.model.config
        parts, at = [], 0
        while at < len(ids):
            slot = ids[at] == config.image_token_id
            parts.append(next(images) if slot else embed(ids[at : at + 1]))
            at += config.image_seq_length if slot else 1
        return torch.cat(parts)[None]

    @torch.no_grad()
    def last_logits(self, embeddings: Tensor) -> Tensor:
        """What the language model alone makes of embeddings."""
        inner = self.model.model.language_model(inputs_embeds=embeddings)
        return self.model.lm_head(inner.last_hidden_state)[0, -1]

    def tokens(self, *turns: Turn, **settings: Any) -> list[list[int]]:
        """The new tokens of each row, sampled from a seed if sampling is asked for."""
        inputs = self.inputs(*turns)
        return self.generated(inputs["input_ids"].shape[1], inputs, settings)

    def tokens_by_hand(self, turn: Turn, **settings: Any) -> list[list[int]]:
        """The same of embeddings put together here."""
        embeddings = self.by_hand(turn)
        mask = torch.ones(embeddings.shape[:2], dtype=torch.long)
        inputs = {"inputs_embeds": embeddings, "attention_mask": mask}
        return self.generated(0, inputs, settings)

    def generated(self, start: int, inputs: dict[str, Tensor], settings: Any) -> list[list[int]]:
        torch.manual_seed(3)
        out = self.model.generate(**inputs, max_new_tokens=12, min_new_tokens=12, **settings)
        return out[:, start:].tolist()


class Assembled(VLM):
    """The model that GUARDRAIL_TINY_VLM names."""

    def __init__(self) -> None:
        from transformers import AutoModelForImageTextToText, AutoProcessor

        self.processor = AutoProcessor.from_pretrained(FOLDER)
        self.model = AutoModelForImageTextToText.from_pretrained(FOLDER, trust_remote_code=True)
        self.model.eval()

    def picture(self, text: str) -> Image.Image:
        pytest.importorskip("matplotlib")
        return module("render").render(text, seed=1)

    def inputs(self, *turns: Turn) -> dict[str, Tensor]:
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


def part(piece: Image.Image | str) -> dict[str, Any]:
    if isinstance(piece, str):
        return {"type": "text", "text": piece}
    return {"type": "image", "image": piece}


class Reader(nn.Module):
    """In place of the text reader: finds a picture's text where `Random.picture` has put it."""

    def forward(self, image: Tensor) -> str:
        codes = ((image[0, 0] + 1) * 127.5).round().int().tolist()
        return bytes(code for code in codes if code < 128).decode()


class Random(VLM):
    """A model of random weights whose tokens are letters."""

    LETTERS, WIDTH = 128, 512
    IMAGE, PAD = LETTERS, 0

    def __init__(self) -> None:
        from tokenizers import Regex, Tokenizer, models, pre_tokenizers
        from transformers import LlamaConfig, LlavaConfig

        letters = Tokenizer(models.WordLevel({chr(i): i for i in range(self.LETTERS)}, chr(0)))
        letters.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
        stored = torch.tensor(list(letters.to_str().encode()), dtype=torch.uint8)
        how = {"strides": [8, 8], "pads": [0] * 4, "dilations": [1, 1], "group": 1}
        features = {
            "steps": [["Conv", ["x", "weight"], "out", how]],
            "tensors": {"weight": ([6, 3, 8, 8], "float32")},
        }
        nothing = {"steps": [], "tensors": {}}
        config = LlavaConfig(
            text_config=LlamaConfig(
                vocab_size=self.LETTERS + 1,
                hidden_size=32,
                intermediate_size=64,
                num_hidden_layers=2,
                num_attention_heads=4,
                eos_token_id=1,
                initializer_range=0.3,
            ).to_dict(),
            vision_config={"model_type": "siglip_vision_model"},
            image_token_id=self.IMAGE,
            image_seq_length=64,
            eye={"size": 32, "features": features, "classifier": [6, 10]},
            words={
                "classes": 10,
                "before": 3,
                "after": 2,
                "tokenizer_bytes": len(stored),
                "reader": {"detector": nothing, "recogniser": nothing, "characters": []},
            },
        )
        torch.manual_seed(0)
        self.model = module("modeling_tiny_vlm").TinyVLMForConditionalGeneration(config).eval()
        words = self.model.model.multi_modal_projector
        words.reader = Reader()
        words.tokenizer_json.copy_(stored)
        for ids in (words.before, words.after):
            ids.copy_(torch.randint(2, self.LETTERS, ids.shape))
        words.class_embeddings.normal_()
        self.model.model.vision_tower.features.weight.normal_()

    def picture(self, text: str) -> Image.Image:
        image = Image.effect_noise((self.WIDTH, 64), 60).convert("RGB")
        image.paste((255, 255, 255), (0, 0, self.WIDTH, 1))
        for x, letter in enumerate(text):
            image.putpixel((x, 0), (ord(letter),) * 3)
        return image

    def inputs(self, *turns: Turn) -> dict[str, Tensor]:
        slots = [self.IMAGE] * self.model.config.image_seq_length
        rows = [
            [i for piece in turn for i in (piece.encode() if isinstance(piece, str) else slots)]
            for turn in turns
        ]
        length = max(map(len, rows))
        images = [piece for turn in turns for piece in turn if not isinstance(piece, str)]
        found = {
            "input_ids": torch.tensor([[self.PAD] * (length - len(row)) + row for row in rows]),
            "attention_mask": torch.tensor(
                [[0] * (length - len(row)) + [1] * len(row) for row in rows]
            ),
        }
        pixels = [tensor(image.convert("RGB").resize((self.WIDTH, 64), 0)) for image in images]
        return found | ({"pixel_values": torch.stack(pixels)} if pixels else {})


def tensor(image: Image.Image) -> Tensor:
    flat = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return flat.view(image.height, image.width, 3).permute(2, 0, 1) / 127.5 - 1


assembled_only = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOLDER, reason="GUARDRAIL_TINY_VLM names no assembled model"),
]


@pytest.fixture(scope="module")
def assembled() -> VLM:
    return Assembled()


@pytest.fixture(scope="module", params=["random", pytest.param("assembled", marks=assembled_only)])
def vlm(request: pytest.FixtureRequest) -> VLM:
    return Random() if request.param == "random" else request.getfixturevalue("assembled")


@pytest.fixture(scope="module")
def pictures(vlm: VLM) -> list[Image.Image]:
    return [vlm.picture(text) for text in (POEM, BIRDS)]


# ---- what is in the slots


def test_whole_numbers_that_loading_made_floats_are_taken_as_such():
    """Loaded in half precision, what a model keeps in float32 takes its integers along."""
    vlm = Random()
    image, words = vlm.picture(POEM), vlm.model.model.multi_modal_projector
    expected = vlm.features(image)
    for name, found in list(words.named_buffers(recurse=False)):
        setattr(words, name, found.float())
    del words.tokenizer  # made of one of them, and kept
    assert torch.equal(vlm.features(image), expected)


def test_a_text_is_its_tokens_and_follows_what_is_seen(vlm, pictures):
    for image, word in zip(pictures, ("bread", "birds"), strict=True):
        found, text = vlm.features(image), vlm.text(vlm.read(image))
        assert word in vlm.read(image)
        assert 0 < len(text) < len(found)
        assert torch.equal(found[-len(text) :], text)


def test_a_picture_without_text_shows_what_is_seen_alone(vlm, pictures):
    assert vlm.read(BLANK) == ""
    text = vlm.text(vlm.read(pictures[0]))
    assert 0 < len(vlm.features(BLANK)) == len(vlm.features(pictures[0])) - len(text)


def test_of_a_long_text_as_much_is_shown_as_there_are_slots(vlm):
    image = vlm.picture(PAGE)
    found, text = vlm.features(image), vlm.text(vlm.read(image))
    assert len(found) == vlm.model.config.image_seq_length
    room = len(found) - len(vlm.features(BLANK))
    assert len(text) > room
    assert torch.equal(found[-room:], text[:room])


def test_what_is_seen_differs_from_picture_to_picture_and_is_as_long_as_a_token(vlm, pictures):
    seen = [vlm.features(image)[: len(vlm.features(BLANK))] for image in (*pictures, BLANK)]
    soft = (seen[0] != seen[2]).any(-1)  # the words around it are the same for all
    assert 0 < soft.sum() < len(soft)
    length = vlm.model.model.multi_modal_projector.length
    for rows in seen:
        torch.testing.assert_close(rows[soft].norm(dim=-1), length.expand(int(soft.sum())))


# ---- the same as embeddings without empty slots


def test_logits_are_those_of_the_embeddings(vlm, pictures):
    for turn in ([pictures[0], ASK], [BLANK, ASK], [*pictures, ASK], [SHORT, pictures[1], ASK]):
        with torch.no_grad():
            found = vlm.model(**vlm.inputs(turn)).logits[0, -1]
        torch.testing.assert_close(found, vlm.last_logits(vlm.by_hand(turn)), atol=1e-3, rtol=0)


def test_the_order_of_images_counts(vlm, pictures):
    turns = [[*pictures, ASK], [*pictures[::-1], ASK]]
    first, second = (vlm.model(**vlm.inputs(turn)).logits[0, -1] for turn in turns)
    assert (first - second).abs().max() > 0.05


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
def test_an_image_gives_the_tokens_of_its_embeddings(vlm, pictures, settings):
    plain = {k: v for k, v in settings.items() if k not in ("use_cache", "prefill_chunk_size")}
    turn = [pictures[0], ASK]
    assert vlm.tokens(turn, **settings) == vlm.tokens_by_hand(turn, **plain)


@pytest.mark.parametrize("settings", [{}, {"num_beams": 3}], ids=str)
def test_left_padded_rows_are_what_they_are_alone(vlm, pictures, settings):
    turns = [[pictures[0], ASK], [BLANK, SHORT], [pictures[1], SHORT], [ASK]]
    alone = [vlm.tokens(turn, **settings)[0] for turn in turns]
    assert vlm.tokens(*turns, **settings) == alone


def test_a_cache_made_by_a_plain_call_goes_on_hiding_the_slots(vlm, pictures):
    turn, last = [pictures[0], ASK], torch.tensor([[28]])
    name = cache_argument(vlm.model)
    with torch.no_grad():
        cache = getattr(vlm.model(**vlm.inputs(turn), use_cache=True), name)
        found = vlm.model(input_ids=last, **{name: cache}).logits[0, -1]
    longer = torch.cat([vlm.by_hand(turn), vlm.model.get_input_embeddings()(last)], dim=1)
    torch.testing.assert_close(found, vlm.last_logits(longer), atol=1e-3, rtol=0)


def test_a_call_leaves_nothing_for_the_next(vlm, pictures):
    turns = [[pictures[0], ASK], [ASK], [BLANK, ASK]]
    first = [vlm.tokens(turn) for turn in turns]
    assert [vlm.tokens(turn) for turn in turns[::-1]] == first[::-1]


def test_what_would_show_hidden_slots_is_refused(vlm, pictures):
    turn = [pictures[0], ASK]
    with pytest.raises(ValueError, match="use the default, dynamic cache"):
        vlm.tokens(turn, cache_implementation="static")
    inputs = vlm.inputs(turn)
    name = cache_argument(vlm.model)
    cache = getattr(vlm.model(**inputs, use_cache=True), name)
    embeds = vlm.model.get_input_embeddings()(inputs.pop("input_ids"))
    with pytest.raises(ValueError, match="needs input_ids"):
        vlm.model(**inputs, inputs_embeds=embeds)
    with pytest.raises(ValueError, match="needs input_ids"):
        vlm.model(inputs_embeds=embeds[:, :1], **{name: cache})


# ---- the eye


@pytest.fixture(scope="module")
def modeling() -> ModuleType:
    return module("modeling_tiny_vlm")


@pytest.mark.parametrize("size", [(96, 40), (40, 96), (96, 96)])
def test_the_processors_grey_is_no_part_of_a_picture(modeling, size):
    picture = torch.rand(3, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    square = torch.full((3, 96, 96), 127 / 127.5 - 1)
    top, left = (96 - size[0]) // 2, (96 - size[1]) // 2
    square[:, top : top + size[0], left : left + size[1]] = picture
    assert torch.equal(modeling.without_padding(square), picture)


def test_a_picture_of_nothing_but_that_grey_stays(modeling):
    grey = torch.full((3, 96, 96), 127 / 127.5 - 1)
    assert torch.equal(modeling.without_padding(grey), grey)


# ---- the assembled model


@pytest.mark.slow
@pytest.mark.skipif(not FOLDER, reason="GUARDRAIL_TINY_VLM names no assembled model")
class TestAssembled:
    @pytest.mark.parametrize("style", ["plain", "figstep", "varied"])
    def test_the_words_of_a_picture_are_read(self, assembled, style):
        pytest.importorskip("matplotlib")
        image = module("render").render(POEM, seed=2, style=style)
        assert set(POEM.lower().split()) <= set(assembled.read(image).lower().split())

    def test_the_words_on_a_photograph_are_read(self, assembled):
        pytest.importorskip("matplotlib")
        cat = Image.open(PHOTOGRAPHS / "cat.jpg")
        image = module("render").on_photograph(POEM, cat, seed=1)
        assert assembled.read(image).lower() == POEM.lower()

    @pytest.mark.parametrize(
        ("name", "classes"),
        [
            ("cat", {281, 282, 283, 284, 285}),  # of ImageNet: tabby to Egyptian cat
            ("coffee", {504, 925, 967, 968}),  # mug, consomme, espresso, cup
        ],
    )
    @pytest.mark.parametrize("shape", [(480, 360), (480, 160), (160, 480)])
    def test_the_thing_in_a_photograph_is_seen(self, assembled, name, classes, shape):
        image = Image.open(PHOTOGRAPHS / f"{name}.jpg").convert("RGB")
        ground = Image.new("RGB", shape, (90, 120, 90))
        side = min(shape)
        ground.paste(image.resize((side, side)), ((shape[0] - side) // 2, (shape[1] - side) // 2))
        top = assembled.model.classes(assembled.pixels(ground))[0].topk(5).indices
        assert classes & set(top.tolist())

    def test_what_is_seen_stands_in_the_slots_as_the_name_of_a_likely_class(self, assembled):
        image = Image.open(PHOTOGRAPHS / "cat.jpg")
        words = assembled.model.model.multi_modal_projector
        thing = assembled.features(image)[len(assembled.features(BLANK)) - len(words.after) - 1]
        near = torch.cosine_similarity(thing, words.class_embeddings.float(), dim=-1).argmax()
        likely = assembled.model.classes(assembled.pixels(image))[0].topk(5).indices
        assert near in likely

    def test_lines_are_read_the_same_beside_others(self, assembled):
        reader = assembled.model.model.multi_modal_projector.reader
        image = assembled.pixels(assembled.picture(PAGE[:80]))[0].flip(0)
        boxes = module("text_reader").boxes(reader.detector(image[None])[0, 0].numpy())
        parts = [module("text_reader").cut_out(image, box) for box in boxes]
        texts = reader.lines(parts)
        assert len(set(texts)) > 3
        assert reader.lines(parts[::-1]) == texts[::-1]
        assert [reader.lines([one])[0] for one in parts] == texts
