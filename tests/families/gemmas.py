"""Gemma's vision models: pictures seen in both directions, sliding windows."""

from __future__ import annotations

from typing import Any

import transformers

from guardrail.testing.families import (
    HIDDEN,
    LAYERS,
    Family,
    ids,
    square,
    text,
    vision,
)
from guardrail.testing.tokens import tokenizer

_hf: Any = transformers
SLIDING = {
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"] * (LAYERS // 2),
}


def _gemma3() -> tuple[Any, Any]:
    names = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    words = tokenizer(names, "<start_of_image>")
    start, end, image = ids(words, names.values())
    config = _hf.Gemma3Config(
        text_config=text(words, query_pre_attn_scalar=8, **SLIDING),
        vision_config=vision("siglip_vision_model", vision_use_head=False),
        mm_tokens_per_image=4,
        image_token_index=image,
        boi_token_index=start,
        eoi_token_index=end,
        tie_word_embeddings=False,
    )
    processor = _hf.Gemma3Processor(
        image_processor=_hf.Gemma3ImageProcessor(size=square()),
        tokenizer=words,
        image_seq_length=4,
        chat_template=words.chat_template,
    )
    return config, processor


def _gemma4() -> tuple[Any, Any]:
    names = {
        "boi_token": "<|image>",
        "eoi_token": "<image|>",
        "image_token": "<|image|>",
        "video_token": "<|video|>",
        "boa_token": "<|audio>",
        "eoa_token": "<audio|>",
        "audio_token": "<|audio|>",
    }
    words = tokenizer(names, "<|image|>", "<|video|>")
    start, end, image, video, _, _, audio = ids(words, names.values())
    small = {"patch_size": 4, "pooling_kernel_size": 2, "max_soft_tokens": 70}  # the fewest allowed
    processor = _hf.Gemma4Processor(
        feature_extractor=_hf.Gemma4AudioFeatureExtractor(),
        image_processor=_hf.Gemma4ImageProcessor(**small),
        tokenizer=words,
        video_processor=_hf.Gemma4VideoProcessor(**small, num_frames=4),
        image_seq_length=70,
        chat_template=words.chat_template,
    )
    decoder = text(
        words,
        vocab_size_per_layer_input=len(words),
        hidden_size_per_layer_input=8,
        num_kv_shared_layers=0,
        global_head_dim=8,
        **SLIDING,
    )
    tower = vision(
        num_key_value_heads=2,
        head_dim=16,
        patch_size=4,
        pooling_kernel_size=2,
        position_embedding_size=512,
    )
    config = _hf.Gemma4Config(
        text_config=decoder,
        vision_config=tower,
        audio_config=None,
        image_token_id=image,
        video_token_id=video,
        boi_token_id=start,
        eoi_token_id=end,
        audio_token_id=audio,
        tie_word_embeddings=False,
    )
    return config, processor


def _paligemma() -> tuple[Any, Any]:
    # the processor itself puts the beginning token behind the last picture
    words = tokenizer({"image_token": "<image>"}, "<image>", begin=False)
    images = _hf.SiglipImageProcessor(size=square())
    images.image_seq_length = 4
    processor = _hf.PaliGemmaProcessor(
        image_processor=images, tokenizer=words, chat_template=words.chat_template
    )
    config = _hf.PaliGemmaConfig(
        text_config=text(words, model_type="gemma"),
        vision_config=vision("siglip_vision_model", vision_use_head=False, projection_dim=HIDDEN),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        projection_dim=HIDDEN,
        hidden_size=HIDDEN,
        tie_word_embeddings=False,
    )
    return config, processor


FAMILIES = (
    Family("gemma3", _gemma3),
    Family("gemma4", _gemma4, video=True),
    Family("paligemma", _paligemma, text_alone=False, mixed_batch=False),
)
