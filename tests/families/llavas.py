"""What follows LLaVA's layout: a CLIP-like tower, a projector, a plain decoder."""

from __future__ import annotations

from typing import Any

import transformers

from guardrail.testing.families import CELL, HIDDEN, Family, family, ids, square, text, vision
from guardrail.testing.tokens import tokenizer

_hf: Any = transformers
_GRID = [[CELL, 2 * CELL], [2 * CELL, CELL], [2 * CELL, 2 * CELL]]
_CROPPED = {"size": {"shortest_edge": CELL}, "crop_size": square(), "do_center_crop": True}


def _llava_next() -> tuple[Any, Any]:
    words = tokenizer({"image_token": "<image>"}, "<image>\\n")
    config = _hf.LlavaNextConfig(
        vision_config=vision("clip_vision_model", projection_dim=HIDDEN),
        text_config=text(words, model_type="llama"),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
        image_grid_pinpoints=_GRID,
        vision_feature_layer=-2,
        tie_word_embeddings=False,
    )
    processor = _hf.LlavaNextProcessor(
        image_processor=_hf.LlavaNextImageProcessor(**_CROPPED, image_grid_pinpoints=_GRID),
        tokenizer=words,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=words.chat_template,
    )
    return config, processor


def _llava_onevision() -> tuple[Any, Any]:
    names = {"image_token": "<image>", "video_token": "<video>"}
    words = tokenizer(names, "<image>\\n", "<video>\\n")
    image, video = ids(words, names.values())
    config = _hf.LlavaOnevisionConfig(
        vision_config=vision("siglip_vision_model", vision_use_head=False),
        text_config=text(words, model_type="qwen2"),
        image_token_index=image,
        video_token_index=video,
        image_grid_pinpoints=_GRID,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    processor = _hf.LlavaOnevisionProcessor(
        image_processor=_hf.LlavaOnevisionImageProcessor(size=square(), image_grid_pinpoints=_GRID),
        tokenizer=words,
        video_processor=_hf.LlavaOnevisionVideoProcessor(size=square()),
        num_image_tokens=4,
        vision_feature_select_strategy="full",
        chat_template=words.chat_template,
    )
    return config, processor


def _llava_next_video() -> tuple[Any, Any]:
    names = {"image_token": "<image>", "video_token": "<video>"}
    words = tokenizer(names, "<image>\\n", "<video>\\n")
    image, video = ids(words, names.values())
    config = _hf.LlavaNextVideoConfig(
        vision_config=vision("clip_vision_model", projection_dim=HIDDEN),
        text_config=text(words, model_type="llama"),
        image_token_index=image,
        video_token_index=video,
        image_seq_length=4,
        image_grid_pinpoints=_GRID,
        vision_feature_layer=-2,
        tie_word_embeddings=False,
    )
    processor = _hf.LlavaNextVideoProcessor(
        image_processor=_hf.LlavaNextImageProcessor(**_CROPPED, image_grid_pinpoints=_GRID),
        tokenizer=words,
        video_processor=_hf.LlavaNextVideoVideoProcessor(**_CROPPED),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=words.chat_template,
    )
    return config, processor


def _pixtral() -> tuple[Any, Any]:
    names = {"image_token": "[IMG]", "break_token": "[IMG_BREAK]", "stop_token": "[IMG_END]"}
    words = tokenizer(names, "[IMG]")
    config = _hf.LlavaConfig(
        vision_config=vision("pixtral", head_dim=16, image_size=2 * CELL),
        text_config=text(words, model_type="mistral", sliding_window=None),
        image_token_index=words.convert_tokens_to_ids("[IMG]"),
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    return config, pixtral_processor(words, longest=42, merge=1)


def _mistral3() -> tuple[Any, Any]:
    names = {"image_token": "[IMG]", "break_token": "[IMG_BREAK]", "stop_token": "[IMG_END]"}
    words = tokenizer(names, "[IMG]")
    config = _hf.Mistral3Config(
        vision_config=vision("pixtral", head_dim=16, image_size=2 * CELL),
        text_config=text(words, model_type="mistral", sliding_window=None),
        image_token_index=words.convert_tokens_to_ids("[IMG]"),
        spatial_merge_size=2,
        vision_feature_layer=-1,
        tie_word_embeddings=False,
    )
    return config, pixtral_processor(words, longest=2 * CELL, merge=2)


def pixtral_processor(words: Any, *, longest: int, merge: int) -> Any:
    """Pictures at their own form in patches of 14, a sign at the end of each row of tokens."""
    return _hf.PixtralProcessor(
        image_processor=_hf.PixtralImageProcessor(
            size={"longest_edge": longest}, patch_size=square(14)
        ),
        tokenizer=words,
        patch_size=14,
        spatial_merge_size=merge,
        chat_template=words.chat_template,
    )


FAMILIES = (
    family("llava"),
    Family("llava_next", _llava_next),
    Family("llava_onevision", _llava_onevision, video=True),
    Family("llava_next_video", _llava_next_video, video=True),
    Family("pixtral", _pixtral),
    Family("mistral3", _mistral3),
)
