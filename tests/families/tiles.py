"""Models that cut a picture into square tiles and add a small copy of the whole."""

from __future__ import annotations

from typing import Any

import transformers

from guardrail.testing.families import CELL, HIDDEN, Family, ids, square, text, vision
from guardrail.testing.tokens import tokenizer
from tests.families.gemmas import SLIDING

_hf: Any = transformers
_TILES = 4
_EACH_TILE = {"min_patches": 1, "max_patches": _TILES, "size": square(), "crop_to_patches": True}


def _internvl() -> tuple[Any, Any]:
    names = {
        "start_image_token": "<img>",
        "end_image_token": "</img>",
        "context_image_token": "<IMG_CONTEXT>",
        "video_token": "<video>",
    }
    words = tokenizer(names, "<IMG_CONTEXT>\\n", "<video>\\n")
    config = _hf.InternVLConfig(
        vision_config=vision(patch_size=7),
        text_config=text(words, model_type="qwen2"),
        image_token_id=words.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=4,
        tie_word_embeddings=False,
    )
    processor = _hf.InternVLProcessor(
        image_processor=_hf.GotOcr2ImageProcessor(**_EACH_TILE),
        tokenizer=words,
        video_processor=_hf.InternVLVideoProcessor(size=square()),
        image_seq_length=4,
        chat_template=words.chat_template,
    )
    return config, processor


def _aya_vision() -> tuple[Any, Any]:
    names = {
        "image_token": "<image>",
        "start_token": "<|START_OF_IMG|>",
        "stop_token": "<|END_OF_IMG|>",
        "patch_token": "<|IMG_PATCH|>",
        "whole_token": "TILE_GLOBAL",
    }
    tiles = {f"tile_{i}_token": f"TILE_{i}" for i in range(1, _TILES + 1)}
    words = tokenizer({**names, **tiles}, "<image>")
    config = _hf.AyaVisionConfig(
        vision_config=vision("siglip_vision_model", patch_size=7, vision_use_head=False),
        text_config=text(words, model_type="cohere2", **SLIDING),
        image_token_index=words.convert_tokens_to_ids("<|IMG_PATCH|>"),
        downsample_factor=2,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    processor = _hf.AyaVisionProcessor(
        image_processor=_hf.GotOcr2ImageProcessor(**_EACH_TILE),
        tokenizer=words,
        patch_size=7,
        img_size=CELL,
        downsample_factor=2,
        chat_template=words.chat_template,
    )
    return config, processor


def _cohere2_vision() -> tuple[Any, Any]:
    names = {
        "image_token": "<|IMG_PATCH|>",
        "boi_token": "<|START_OF_IMG|>",
        "eoi_token": "<|END_OF_IMG|>",
        "img_line_break_token": "<|IMG_LINE_BREAK|>",
    }
    words = tokenizer(names, "<|IMG_PATCH|>")
    config = _hf.Cohere2VisionConfig(
        vision_config=vision("siglip_vision_model", patch_size=7, vision_use_head=False),
        text_config=text(words, model_type="cohere2", **SLIDING),
        image_token_id=words.convert_tokens_to_ids("<|IMG_PATCH|>"),
        downsample_factor=2,
        alignment_intermediate_size=2 * HIDDEN,
        tie_word_embeddings=False,
    )
    # to this processor, a patch's side is that of a tile in tokens
    images = _hf.Cohere2VisionImageProcessor(**_EACH_TILE, patch_size=2)
    processor = _hf.Cohere2VisionProcessor(
        image_processor=images, tokenizer=words, chat_template=words.chat_template
    )
    return config, processor


def _ovis2() -> tuple[Any, Any]:
    """A picture's tokens are mixtures of a vocabulary that pictures have to themselves."""
    signs = ("IMG_START", "IMG_GRID", "IMG_COL", "IMG_ROW", "IMG_END")
    marks = {f"{sign.lower()}_token": f"<{sign}>" for sign in signs}
    words = tokenizer({"image_token": "<image>", "atom_token": "<IMG_ATOM>", **marks}, "<image>")
    tower = vision(patch_size=7, vocab_size=64, hidden_stride=2, num_visual_indicator_tokens=5)
    config = _hf.Ovis2Config(
        vision_config=tower,
        text_config=text(words, model_type="qwen2"),
        image_token_id=words.convert_tokens_to_ids("<IMG_ATOM>"),
        visual_indicator_token_ids=ids(words, marks.values()),
        vocab_size=len(words),
        hidden_size=HIDDEN,
        tie_word_embeddings=False,
    )
    processor = _hf.Ovis2Processor(
        image_processor=_hf.Ovis2ImageProcessor(**_EACH_TILE),
        tokenizer=words,
        image_seq_length=4,
        chat_template=words.chat_template,
    )
    return config, processor


def _idefics_words(**more: str) -> Any:
    names = {
        "image_token": "<image>",
        "fake_image_token": "<fake_token_around_image>",
        "end_of_utterance_token": "<end_of_utterance>",
        "global_image_token": "<global-img>",
        **more,
    }
    places = [(row, column) for row in range(1, 7) for column in range(1, 7)]
    tiles = {f"row_{r}_col_{c}_token": f"<row_{r}_col_{c}>" for r, c in places}
    return tokenizer({**names, **tiles}, "<image>", more.get("video_token"))


def _idefics_config(kind: str, words: Any) -> Any:
    return getattr(_hf, f"{kind}Config")(
        vision_config=vision(patch_size=7),
        text_config=text(words, model_type="llama"),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        scale_factor=2,
        pad_token_id=words.pad_token_id,
        tie_word_embeddings=False,
    )


_SPLIT = {"size": {"longest_edge": 2 * CELL}, "max_image_size": {"longest_edge": CELL}}


def _idefics3() -> tuple[Any, Any]:
    words = _idefics_words()
    processor = _hf.Idefics3Processor(
        image_processor=_hf.Idefics3ImageProcessor(**_SPLIT),
        tokenizer=words,
        image_seq_len=4,
        chat_template=words.chat_template,
    )
    return _idefics_config("Idefics3", words), processor


def _smolvlm() -> tuple[Any, Any]:
    """Needs the package num2words.

    Chats with a video are rendered by the class's own template, which knows no tools or names.
    """
    words = _idefics_words(video_token="<video>")
    sampling = {"max_frames": 8, "fps": 2, "video_size": {"longest_edge": 2 * CELL}}
    processor = _hf.SmolVLMProcessor(
        image_processor=_hf.SmolVLMImageProcessor(**_SPLIT),
        tokenizer=words,
        video_processor=_hf.SmolVLMVideoProcessor(**_SPLIT, video_sampling=sampling),
        image_seq_len=4,
        chat_template=words.chat_template,
    )
    return _idefics_config("SmolVLM", words), processor


FAMILIES = (
    Family("internvl", _internvl, video=True),
    Family("aya_vision", _aya_vision),
    Family("cohere2_vision", _cohere2_vision),
    Family("ovis2", _ovis2),
    Family("idefics3", _idefics3),
    Family("smolvlm", _smolvlm, video=True, mixed_media=False),
)
