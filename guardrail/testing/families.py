"""The families of tiny models: how each is built, and what its requests may hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import transformers

from guardrail.testing.tokens import CONTEXT, tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from transformers import PreTrainedTokenizerFast

_hf: Any = transformers
LAYERS = 4
HEAD = 8
HIDDEN = 4 * HEAD
CELL = 28
"""Side of the square picture, in pixels, that the smallest towers take."""

MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}
"""Positions in three dimensions."""


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture: how it is built, and what its requests may hold.

    Attributes:
        name: What `tiny_model` takes, in most cases the `model_type` of the configuration.
        build: Gives a configuration and a processor (a tokenizer for text-only families).
        pictures: Whether messages may hold pictures.
        video: Whether messages may hold videos.
        text_alone: Whether the processor takes a request without any picture.
        mixed_batch: Whether rows with and without pictures, or with several, may share a batch.
        mixed_media: Whether one request may hold pictures and videos.
        own_generate: Whether the model brings a `generate` of its own, which a guard refuses.
    """

    name: str
    build: Callable[[], tuple[Any, Any]]
    pictures: bool = True
    video: bool = False
    text_alone: bool = True
    mixed_batch: bool = True
    mixed_media: bool = True
    own_generate: bool = False


def text(words: PreTrainedTokenizerFast, **extra: Any) -> dict[str, Any]:
    """The decoder's configuration, the same in all families but for `extra`."""
    return {
        "vocab_size": len(words),
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": HEAD,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": False,
        "pad_token_id": words.pad_token_id,
        "eos_token_id": words.eos_token_id,
        "bos_token_id": words.bos_token_id,
        **extra,
    }


def vision(kind: str | None = None, **extra: Any) -> dict[str, Any]:
    """A two-layer tower for pictures of 28 x 28 in patches of 14."""
    return {
        **({} if kind is None else {"model_type": kind}),
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": CELL,
        "patch_size": 14,
        **extra,
    }


def square(side: int = CELL) -> dict[str, int]:
    """A size that does not keep the picture's form."""
    return {"height": side, "width": side}


def ids(words: PreTrainedTokenizerFast, names: Iterable[str]) -> list[Any]:
    """The ids of special tokens, by their text."""
    return [words.convert_tokens_to_ids(name) for name in names]


def _llava() -> tuple[Any, Any]:
    """Pictures of one size; videos are shown to it as their frames."""
    words = tokenizer({"image_token": "<image>"}, "<image>\\n")
    config = _hf.LlavaConfig(
        vision_config=vision("clip_vision_model", projection_dim=HIDDEN),
        text_config=text(words, model_type="llama"),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
        vision_feature_layer=-2,
        tie_word_embeddings=False,
    )
    processor = _hf.LlavaProcessor(
        image_processor=_hf.CLIPImageProcessor(
            size={"shortest_edge": CELL}, crop_size=square(), do_center_crop=True
        ),
        tokenizer=words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token, dropped again by "default"
        chat_template=words.chat_template,
    )
    return config, processor


def _qwen3_vl() -> tuple[Any, Any]:
    """Pictures and videos at their own size: one to four tokens for each, or each two frames."""
    names = {
        "vision_bos_token": "<|vision_start|>",
        "vision_eos_token": "<|vision_end|>",
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
    }
    media = (f"<|vision_start|><|{kind}_pad|><|vision_end|>" for kind in ("image", "video"))
    words = tokenizer(names, *media)
    start, end, image, video = ids(words, names.values())
    tower = {
        "depth": 3,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_heads": 2,
        "patch_size": 14,
        "out_hidden_size": HIDDEN,
        "num_position_embeddings": 16,
        "deepstack_visual_indexes": [0, 1],
    }
    config = _hf.Qwen3VLConfig(
        text_config=text(words, rope_parameters={**MROPE, "mrope_interleaved": True}),
        vision_config=tower,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=False,
    )
    bounds = {"shortest_edge": CELL**2, "longest_edge": 4 * CELL**2}
    of_all_frames = {name: 4 * area for name, area in bounds.items()}
    processor = _hf.Qwen3VLProcessor(
        image_processor=_hf.Qwen2VLImageProcessor(size=bounds, patch_size=14),
        tokenizer=words,
        video_processor=_hf.Qwen3VLVideoProcessor(size=of_all_frames, patch_size=14),
        chat_template=words.chat_template,
    )
    return config, processor


def _llama() -> tuple[Any, Any]:
    """Reads text alone."""
    words = tokenizer()
    return _hf.LlamaConfig(**text(words)), words


_KNOWN: dict[str, Family] = {}


def register(*families: Family) -> None:
    """Let `tiny_model` build these as well, such as an architecture of your own."""
    _KNOWN.update((one.name, one) for one in families)


def family(name: str) -> Family:
    """What the tiny model of that name takes: pictures, videos, text alone.

    Raises:
        ValueError: No such family; the message lists the known ones.
    """
    if name not in _KNOWN:
        raise ValueError(f"unknown family {name!r}; choose one of {', '.join(_KNOWN)}")
    return _KNOWN[name]


register(
    Family("llava", _llava),
    Family("qwen3_vl", _qwen3_vl, video=True),
    Family("llama", _llama, pictures=False, mixed_batch=False),
)

FAMILIES = tuple(_KNOWN)
"""What `tiny_model` builds by itself; `family(name)` says what each of them takes."""

IMAGE_FAMILIES = tuple(name for name, one in _KNOWN.items() if one.pictures)
"""Those whose messages may hold pictures; the others read text only."""

VIDEO_FAMILIES = tuple(name for name, one in _KNOWN.items() if one.video)
"""Those whose messages may hold videos, too."""
