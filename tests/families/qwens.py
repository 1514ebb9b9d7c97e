"""Qwen's and GLM's vision models: pictures at their own size, positions in three dimensions."""

from __future__ import annotations

from typing import Any

import transformers

from guardrail.testing.families import CELL, HIDDEN, MROPE, Family, family, ids, text, vision
from guardrail.testing.tokens import tokenizer

_hf: Any = transformers
_NAMES = {
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
}
_INTERLEAVED = {**MROPE, "mrope_interleaved": True}
_TOWER = {
    "depth": 2,
    "hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_heads": 2,
    "patch_size": 14,
    "out_hidden_size": HIDDEN,
}
_TOWER_3 = {**_TOWER, "depth": 3, "num_position_embeddings": 16}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": HIDDEN}


def _words(own: str | None = None) -> Any:
    media = (f"<|vision_start|>{_NAMES[k]}<|vision_end|>" for k in ("image_token", "video_token"))
    return tokenizer(_NAMES, *media, own=own)


def _config(kind: str, words: Any, text_config: dict[str, Any], tower: dict[str, Any]) -> Any:
    start, end, image, video = ids(words, _NAMES.values())
    return getattr(_hf, f"{kind}Config")(
        text_config=text_config,
        vision_config=tower,
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=False,
    )


def _processor(kind: str, videos: str, words: Any) -> Any:
    """One to four tokens a picture; a video has up to four for each two of its frames."""
    bounds = {"shortest_edge": CELL**2, "longest_edge": 4 * CELL**2}
    # this processor counts the pixels of all frames together, the older one those of a frame
    whole = {name: 4 * area for name, area in bounds.items()} if videos == "Qwen3VL" else bounds
    return getattr(_hf, f"{kind}Processor")(
        image_processor=_hf.Qwen2VLImageProcessor(size=bounds, patch_size=14),
        tokenizer=words,
        video_processor=getattr(_hf, f"{videos}VideoProcessor")(size=whole, patch_size=14),
        chat_template=words.chat_template,
    )


def _qwen2_vl() -> tuple[Any, Any]:
    words = _words()
    tower = {"depth": 2, "embed_dim": HIDDEN, "hidden_size": HIDDEN, "num_heads": 2}
    config = _config(
        "Qwen2VL", words, text(words, rope_parameters=MROPE), {**tower, "patch_size": 14}
    )
    return config, _processor("Qwen2VL", "Qwen2VL", words)


def _qwen2_5_vl() -> tuple[Any, Any]:
    words = _words()
    tower = {**_TOWER, "fullatt_block_indexes": [1], "window_size": 56}
    config = _config("Qwen2_5_VL", words, text(words, rope_parameters=MROPE), tower)
    return config, _processor("Qwen2_5_VL", "Qwen2VL", words)


def _qwen3_vl_moe() -> tuple[Any, Any]:
    words = _words()
    tower = {**_TOWER_3, "deepstack_visual_indexes": [0, 1]}
    decoder = text(words, rope_parameters=_INTERLEAVED, **_EXPERTS)
    return _config("Qwen3VLMoe", words, decoder, tower), _processor("Qwen3VL", "Qwen3VL", words)


def _qwen3_5() -> tuple[Any, Any]:
    words = _words("Qwen3_5Tokenizer")
    decoder = text(
        words,
        rope_parameters={**_INTERLEAVED, "partial_rotary_factor": 0.25},
        **{**linear_attention(), "head_dim": 32},
    )
    config = _config("Qwen3_5", words, decoder, _TOWER_3)
    return config, _processor("Qwen3VL", "Qwen3VL", words)


def linear_attention() -> dict[str, Any]:
    """Three layers with a recurrent state before one with full attention."""
    return {
        "linear_key_head_dim": 8,
        "linear_value_head_dim": 8,
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 4,
        "layer_types": ["linear_attention"] * 3 + ["full_attention"],
    }


def _glm4v() -> tuple[Any, Any]:
    words = _glm_words()
    rope = {**MROPE, "partial_rotary_factor": 1.0}
    return _glm_config("Glm4v", words, text(words, rope_parameters=rope)), _glm_processor(words)


def _glm4v_moe() -> tuple[Any, Any]:
    """One dense layer before those with experts."""
    words = _glm_words()
    experts = {
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": HIDDEN,
        "first_k_dense_replace": 1,
    }
    decoder = text(words, rope_parameters={**MROPE, "partial_rotary_factor": 1.0}, **experts)
    return _glm_config("Glm4vMoe", words, decoder), _glm_processor(words)


_GLM = {
    "image_token": "<|image|>",
    "video_token": "<|video|>",
    "image_start_token": "<|begin_of_image|>",
    "image_end_token": "<|end_of_image|>",
    "video_start_token": "<|begin_of_video|>",
    "video_end_token": "<|end_of_video|>",
}


def _glm_words() -> Any:
    media = (f"<|begin_of_{kind}|><|{kind}|><|end_of_{kind}|>" for kind in ("image", "video"))
    return tokenizer(_GLM, *media)


def _glm_config(kind: str, words: Any, decoder: dict[str, Any]) -> Any:
    return getattr(_hf, f"{kind}Config")(
        text_config=decoder,
        vision_config={**vision(), **_TOWER, "image_size": 2 * CELL},
        tie_word_embeddings=False,
        **{
            f"{name}_id": number
            for name, number in zip(_GLM, ids(words, _GLM.values()), strict=True)
        },
    )


def _glm_processor(words: Any) -> Any:
    bounds = {"shortest_edge": 2 * CELL**2, "longest_edge": 8 * CELL**2}
    return _hf.Glm4vProcessor(
        image_processor=_hf.Glm4vImageProcessor(size=bounds),
        tokenizer=words,
        video_processor=_hf.Glm4vVideoProcessor(
            size={name: 2 * area for name, area in bounds.items()}
        ),
        chat_template=words.chat_template,
    )


FAMILIES = (
    Family("qwen2_vl", _qwen2_vl, video=True),
    Family("qwen2_5_vl", _qwen2_5_vl, video=True),
    family("qwen3_vl"),
    Family("qwen3_vl_moe", _qwen3_vl_moe, video=True),
    Family("qwen3_5", _qwen3_5, video=True),
    Family("glm4v", _glm4v, video=True, mixed_media=False),
    Family("glm4v_moe", _glm4v_moe, video=True, mixed_media=False),
)
