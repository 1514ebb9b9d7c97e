"""Configurations and processors of the tiny models in `guardrail.testing`, built in code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedConfig, PreTrainedTokenizerFast, ProcessorMixin

LAYERS = 4
HIDDEN = 32
CONTEXT = 2048
_PAD, _START, _END = "<|pad|>", "<|im_start|>", "<|im_end|>"

# Words that get their own tokens, so that prompts are short and some tokens span a word boundary.
_WORDS = (
    " the a what is this picture how do I make tell me about write say you can sorry help with that"
    " user assistant system tool describe image please and of to in red blue green cat dog"
)

_ROLES = "['system', 'user', 'assistant', 'tool']"
_TEMPLATE = (
    "{%- if tools %}{{- '<|im_start|>system\\nTools:\\n' }}"
    "{%- for tool in tools %}{{- tool | tojson ~ '\\n' }}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}{%- endif %}"
    "{%- for message in messages %}"
    "{%- if message['role'] not in " + _ROLES + " %}"
    "{{- raise_exception('unknown role ' ~ message['role']) }}{%- endif %}"
    "{{- '<|im_start|>' ~ message['role'] }}"
    "{%- if message['name'] %}{{- ' ' ~ message['name'] }}{%- endif %}{{- '\\n' }}"
    "CONTENT"
    "{%- for call in message['tool_calls'] or [] %}"
    "{{- '<tool_call>\\n' ~ (call['function'] | tojson) ~ '\\n</tool_call>' }}{%- endfor %}"
    "{{- '<|im_end|>\\n' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"
)
_PARTS = (
    "{%- if message['content'] is string %}{{- message['content'] }}{%- else %}"
    "{%- for part in message['content'] %}"
    "{%- if part['type'] == 'image' %}{{- 'PLACEHOLDER' }}"
    "{%- elif part['type'] == 'text' %}{{- part['text'] }}"
    "{%- else %}{{- raise_exception('unknown part ' ~ part['type']) }}{%- endif %}"
    "{%- endfor %}{%- endif %}"
)


def _tokenizer(placeholder: str | None, **named: str) -> PreTrainedTokenizerFast:
    """Byte-level BPE over all 256 bytes, so that any text encodes and nothing is unknown."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {piece: i for i, piece in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    merges: list[tuple[str, str]] = []
    for word in _WORDS.split():
        head = "Ġ"  # the byte-level sign for a leading blank
        for letter in word:
            if head + letter not in vocab:
                vocab[head + letter] = len(vocab)
                merges.append((head, letter))
            head += letter
    core = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(
        [AddedToken(t, special=True) for t in (_PAD, _START, _END, *named.values())]
    )
    content = "{{- message['content'] }}"
    if placeholder is not None:
        content = _PARTS.replace("PLACEHOLDER", placeholder)
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=core,
        pad_token=_PAD,
        eos_token=_END,
        extra_special_tokens={"turn_token": _START, **named},
        chat_template=_TEMPLATE.replace("CONTENT", content),
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def _text(tokenizer: PreTrainedTokenizerFast, **extra: Any) -> dict[str, Any]:
    """The decoder's configuration, the same in all families but for `extra`."""
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": False,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": None,
        **extra,
    }


def _vision(kind: str, **extra: Any) -> dict[str, Any]:
    """A two-layer tower for pictures of 28 x 28 in patches of 14."""
    return {
        "model_type": kind,
        "hidden_size": HIDDEN,
        "intermediate_size": 2 * HIDDEN,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
        **extra,
    }


def _llava() -> tuple[PreTrainedConfig, ProcessorMixin]:
    from transformers import CLIPImageProcessor, LlavaConfig, LlavaProcessor

    tokenizer = _tokenizer("<image>\\n", image_token="<image>")
    placeholder: Any = tokenizer.convert_tokens_to_ids("<image>")
    config = LlavaConfig(
        vision_config=_vision("clip_vision_model", projection_dim=HIDDEN),
        text_config=_text(tokenizer, model_type="llama"),
        image_token_index=placeholder,
        image_seq_length=4,
        vision_feature_layer=-2,
        tie_word_embeddings=False,
    )
    images = CLIPImageProcessor(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, do_center_crop=True
    )
    processor = LlavaProcessor(  # type: ignore[no-untyped-call]
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,  # CLIP's class token, dropped again by "default"
        chat_template=tokenizer.chat_template,
    )
    return config, processor


def _qwen2_5_vl() -> tuple[PreTrainedConfig, ProcessorMixin]:
    from transformers import (
        Qwen2_5_VLConfig,
        Qwen2_5_VLProcessor,
        Qwen2VLImageProcessor,
        Qwen2VLVideoProcessor,
    )

    names = {
        "vision_bos_token": "<|vision_start|>",
        "vision_eos_token": "<|vision_end|>",
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
    }
    tokenizer = _tokenizer("<|vision_start|><|image_pad|><|vision_end|>", **names)
    ids: dict[str, Any] = {n: tokenizer.convert_tokens_to_ids(t) for n, t in names.items()}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}
    config = Qwen2_5_VLConfig(
        text_config=_text(tokenizer, rope_parameters=rope),
        vision_config={
            "depth": 2,
            "hidden_size": HIDDEN,
            "intermediate_size": 2 * HIDDEN,
            "num_heads": 2,
            "patch_size": 14,
            "out_hidden_size": HIDDEN,
            "fullatt_block_indexes": [1],
            "window_size": 56,
        },
        image_token_id=ids["image_token"],
        video_token_id=ids["video_token"],
        vision_start_token_id=ids["vision_bos_token"],
        vision_end_token_id=ids["vision_eos_token"],
        tie_word_embeddings=False,
    )
    bounds = {"shortest_edge": 28 * 28, "longest_edge": 56 * 56}
    processor = Qwen2_5_VLProcessor(  # type: ignore[no-untyped-call]
        image_processor=Qwen2VLImageProcessor(size=bounds),
        tokenizer=tokenizer,
        video_processor=Qwen2VLVideoProcessor(size=bounds),
        chat_template=tokenizer.chat_template,
    )
    return config, processor


def _gemma3() -> tuple[PreTrainedConfig, ProcessorMixin]:
    from transformers import Gemma3Config, Gemma3ImageProcessor, Gemma3Processor

    names = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    tokenizer = _tokenizer("<start_of_image>", **names)
    ids: dict[str, Any] = {n: tokenizer.convert_tokens_to_ids(t) for n, t in names.items()}
    config = Gemma3Config(
        text_config=_text(
            tokenizer,
            query_pre_attn_scalar=8,
            sliding_window=16,
            layer_types=["sliding_attention", "full_attention"] * (LAYERS // 2),
        ),
        vision_config=_vision("siglip_vision_model", vision_use_head=False),
        mm_tokens_per_image=4,
        image_token_index=ids["image_token"],
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
        tie_word_embeddings=False,
    )
    processor = Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size={"height": 28, "width": 28}),
        tokenizer=tokenizer,
        image_seq_length=4,
        chat_template=tokenizer.chat_template,
    )
    return config, processor


def _llama() -> tuple[PreTrainedConfig, PreTrainedTokenizerFast]:
    from transformers import LlamaConfig

    tokenizer = _tokenizer(None)
    return LlamaConfig(**_text(tokenizer)), tokenizer


BUILDERS: dict[
    str, Callable[[], tuple[PreTrainedConfig, ProcessorMixin | PreTrainedTokenizerFast]]
] = {"llava": _llava, "qwen2_5_vl": _qwen2_5_vl, "gemma3": _gemma3, "llama": _llama}
