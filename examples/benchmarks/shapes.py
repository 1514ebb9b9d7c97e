"""Vision-language models of a real size with random weights, built from a configuration.

What a guard costs depends on a model's shape, not on what it has learnt. Nothing is downloaded:
the weights are drawn on the device itself, tokenizer and image processor are those of
`guardrail.testing`, with the picture's real size and number of tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, LlavaConfig

from guardrail.model.load import LoadedModel, wrap_model
from guardrail.testing import tiny_model

# About fifty words that are tokens of their own in the tokenizer below, as a real one has them.
PROMPT = (
    "please tell me about the picture and describe what the cat and the dog in the image do with "
    "that red and blue picture of the dog write about the green image and say what you make of "
    "the cat and the dog how do you tell the cat of this picture please describe what is this"
)


@dataclass(frozen=True)
class Tower:
    """A stack of transformer layers."""

    layers: int
    width: int
    inner: int
    heads: int

    def settings(self) -> dict[str, int]:
        """As the configurations of transformers call it."""
        return {
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "intermediate_size": self.inner,
            "num_attention_heads": self.heads,
        }


@dataclass(frozen=True)
class Shape:
    """A LLaVA: `picture` pixels a side, in patches of `patch`, make the picture's tokens."""

    about: str
    text: Tower
    vision: Tower
    picture: int
    patch: int
    vocabulary: int

    @property
    def picture_tokens(self) -> int:
        """How many tokens one picture takes."""
        return (self.picture // self.patch) ** 2


SHAPES = {
    "7b": Shape(
        "LLaVA-1.5-7B", Tower(32, 4096, 11008, 32), Tower(24, 1024, 4096, 16), 336, 14, 32_064
    ),
    "300m": Shape(
        "LLaVA-like, 0.3B", Tower(20, 896, 2432, 14), Tower(12, 768, 3072, 12), 224, 16, 8_192
    ),
    "tiny": Shape("LLaVA-like, tiny", Tower(4, 64, 128, 4), Tower(2, 64, 128, 4), 56, 14, 512),
}


def build(shape: Shape, *, device: str, dtype: torch.dtype, seed: int = 0) -> LoadedModel:
    """A random model of that shape, on `device` from the first number on, and its processor."""
    processor: Any = tiny_model("llava")[1]
    _fit_processor(processor, shape)
    with torch.random.fork_rng(devices=_cards(device)), torch.device(device):
        torch.manual_seed(seed)
        model: Any = AutoModelForImageTextToText.from_config(_config(shape, processor), dtype=dtype)
    # End-of-turn must not be the likeliest token, so that every answer is of the length asked for.
    head = model.get_output_embeddings().weight
    head.data[processor.tokenizer.all_special_ids] = 0.0
    generation = model.generation_config
    generation.pad_token_id = processor.tokenizer.pad_token_id
    generation.eos_token_id = processor.tokenizer.eos_token_id
    generation.do_sample = False
    return wrap_model(model.eval(), processor)


def chats(shape: Shape, *, batch: int, pictures: int) -> list[list[dict[str, Any]]]:
    """`batch` chats of about fifty words, each with so many pictures of its own."""
    return [_chat(shape, [row * pictures + i for i in range(pictures)]) for row in range(batch)]


def parameters(loaded: LoadedModel) -> int:
    """How many numbers the model is made of."""
    return sum(parameter.numel() for parameter in loaded.model.parameters())


def _chat(shape: Shape, seeds: Sequence[int]) -> list[dict[str, Any]]:
    parts: list[dict[str, Any]] = [
        {"type": "image", "image": _noise(shape.picture, seed)} for seed in seeds
    ]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": PROMPT}]}]


def _noise(side: int, seed: int) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (side, side, 3), generator=generator, dtype=torch.uint8)
    return Image.fromarray(pixels.numpy())


def _config(shape: Shape, processor: Any) -> LlavaConfig:
    tokenizer = processor.tokenizer
    return LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            "image_size": shape.picture,
            "patch_size": shape.patch,
            "projection_dim": shape.vision.width,
            **shape.vision.settings(),
        },
        text_config={
            "model_type": "llama",
            "vocab_size": shape.vocabulary,
            "max_position_embeddings": 4096,
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": None,
            **shape.text.settings(),
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=shape.picture_tokens,
        tie_word_embeddings=False,
    )


def _fit_processor(processor: Any, shape: Shape) -> None:
    """Pictures of the shape's size, and as many placeholder tokens as they have patches."""
    images = processor.image_processor
    images.size = {"shortest_edge": shape.picture}
    images.crop_size = {"height": shape.picture, "width": shape.picture}
    processor.patch_size = shape.patch
    processor.tokenizer.model_max_length = 4096


def _cards(device: str) -> list[int]:
    return list(range(torch.cuda.device_count())) if device.startswith("cuda") else []
