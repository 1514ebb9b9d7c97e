"""Architectures that bring pictures in each in a way of its own."""

from __future__ import annotations

from typing import Any

import transformers

from guardrail.testing.families import CELL, HIDDEN, Family, ids, square, text, vision
from guardrail.testing.tokens import tokenizer

_hf: Any = transformers
_TILES = 4


def _mllama() -> tuple[Any, Any]:
    """Pictures are read by a layer of cross-attention, and take one token of the prompt."""
    names = {"image_token": "<|image|>", "python_token": "<|python_tag|>"}
    words = tokenizer(names, "<|image|>", begin=True)
    forms = [[wide, high] for wide in range(1, _TILES + 1) for high in range(1, _TILES // wide + 1)]
    tower = {
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": 2,
        "num_global_layers": 1,
        "attention_heads": 2,
        "vision_output_dim": 2 * HIDDEN,
        "image_size": CELL,
        "patch_size": 14,
        "max_num_tiles": _TILES,
        "intermediate_layers_indices": [0],
        "supported_aspect_ratios": forms,
    }
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    config = _hf.MllamaConfig(
        vision_config=tower,
        text_config=text(words, cross_attention_layers=[1], rope_parameters=rope),
        image_token_index=words.convert_tokens_to_ids("<|image|>"),
    )
    processor = _hf.MllamaProcessor(
        image_processor=_hf.MllamaImageProcessor(size=square(), max_image_tiles=_TILES),
        tokenizer=words,
        chat_template=words.chat_template,
    )
    return config, processor


def _lfm2_vl() -> tuple[Any, Any]:
    """Short convolutions in every other layer; tiles of fixed and a copy of free size."""
    names = {
        "image_token": "<image>",
        "image_start_token": "<|image_start|>",
        "image_end_token": "<|image_end|>",
        "image_thumbnail_token": "<|img_thumbnail|>",
    }
    places = [(row, column) for row in range(1, _TILES + 1) for column in range(1, _TILES + 1)]
    tiles = {f"row_{r}_col_{c}_token": f"<|img_row_{r}_col_{c}|>" for r, c in places}
    words = tokenizer({**names, **tiles}, "<image>")
    mixed = {"layer_types": ["conv", "full_attention"] * 2, "block_auto_adjust_ff_dim": False}
    free = {"num_patches": 16, "patch_size": 7, "vision_use_head": False}
    config = _hf.Lfm2VlConfig(
        vision_config=vision("siglip2_vision_model", **free),
        text_config=text(words, model_type="lfm2", **mixed),
        image_token_id=words.convert_tokens_to_ids("<image>"),
        projector_hidden_size=HIDDEN,
        downsample_factor=2,
        tie_word_embeddings=False,
    )
    images = _hf.Lfm2VlImageProcessor(
        encoder_patch_size=7,
        tile_size=CELL,
        max_tiles=_TILES,
        min_image_tokens=2,
        max_image_tokens=6,
        max_pixels_tolerance=1.0,
    )
    processor = _hf.Lfm2VlProcessor(
        image_processor=images, tokenizer=words, chat_template=words.chat_template
    )
    return config, processor


_MOLMO = {
    "image_token": "<|image|>",
    "video_token": "<|video|>",
    "patch_token": "<im_patch>",
    "column_token": "<im_col>",
    "start_token": "<im_start>",
    "low_start_token": "<low_res_im_start>",
    "frame_start_token": "<frame_start>",
    "stop_token": "<im_end>",
    "frame_stop_token": "<frame_end>",
    "low_token": "<im_low>",
}


def _molmo2() -> tuple[Any, Any]:
    """A token pools patches that it names by their place in the whole batch."""
    words = tokenizer(_MOLMO, "<|image|>", "<|video|>", begin=True)
    grid = {"size": square(), "patch_size": 7, "pooling_size": [2, 2]}
    processor = _hf.Molmo2Processor(
        image_processor=_hf.Molmo2ImageProcessor(**grid, max_crops=_TILES, overlap_margins=[1, 1]),
        video_processor=_hf.Molmo2VideoProcessor(**grid, num_frames=8),
        tokenizer=words,
        chat_template=words.chat_template,
    )
    return _molmo2_config(words), processor


def _molmo2_config(words: Any) -> Any:
    found = dict(zip(_MOLMO, ids(words, _MOLMO.values()), strict=True))
    heads: dict[str, Any] = {"num_key_value_heads": 2, "head_dim": 16}
    tower = vision(patch_size=7, num_position_embeddings=16, **heads)
    adapter = {
        **heads,
        "vision_feature_layer": [-1, -2],
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_attention_heads": 2,
        "text_hidden_size": HIDDEN,
    }
    return _hf.Molmo2Config(
        vision_config={**tower, "image_size": [CELL, CELL]},
        text_config=text(words, additional_vocab_size=8),
        adapter_config=adapter,
        image_start_token_id=found["start_token"],
        image_end_token_id=found["stop_token"],
        image_patch_id=found["patch_token"],
        low_res_image_start_token_id=found["low_start_token"],
        frame_start_token_id=found["frame_start_token"],
        frame_end_token_id=found["frame_stop_token"],
        tie_word_embeddings=False,
    )


FAMILIES = (
    Family("mllama", _mllama, mixed_batch=False),
    Family("molmo2", _molmo2, video=True, mixed_media=False),
    Family("lfm2_vl", _lfm2_vl),
)
