"""BLIP's models: queries for a picture ahead of the prompt, and a `generate` of their own."""

from __future__ import annotations

from typing import Any

import transformers

from guardrail.testing.families import HIDDEN, Family, square, text, vision
from guardrail.testing.tokens import CONTEXT, tokenizer

_hf: Any = transformers
_QUERIES = 4
_QFORMER = {
    "hidden_size": HIDDEN,
    "encoder_hidden_size": HIDDEN,
    "intermediate_size": 2 * HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def _words() -> Any:
    # the processor writes the picture's tokens; under the name `image_token` it would look for an
    # object with other attributes than those of a string
    return tokenizer({"query_token": "<image>"}, "")


def _config(kind: str, words: Any, **extra: Any) -> Any:
    decoder = text(
        words,
        model_type="opt",
        ffn_dim=2 * HIDDEN,
        word_embed_proj_dim=HIDDEN,
        dropout=0.0,
    )
    return getattr(_hf, f"{kind}Config")(
        vision_config=vision(),
        qformer_config={**_QFORMER, "vocab_size": len(words), "max_position_embeddings": CONTEXT},
        text_config=decoder,
        num_query_tokens=_QUERIES,
        image_token_index=words.convert_tokens_to_ids("<image>"),
        **extra,
    )


def _processor(kind: str, words: Any, *more: Any) -> Any:
    processor = getattr(_hf, f"{kind}Processor")(
        _hf.BlipImageProcessor(size=square()), words, *more, num_query_tokens=_QUERIES
    )
    # the class takes none, so that a processor that was saved comes back without
    processor.chat_template = words.chat_template
    return processor


def _blip2() -> tuple[Any, Any]:
    words = _words()
    return _config("Blip2", words, image_text_hidden_size=HIDDEN), _processor("Blip2", words)


def _instructblip() -> tuple[Any, Any]:
    words = _words()
    return _config("InstructBlip", words), _processor("InstructBlip", words, tokenizer())


FAMILIES = (
    Family("blip2", _blip2, text_alone=False, mixed_batch=False, own_generate=True),
    Family("instructblip", _instructblip, text_alone=False, mixed_batch=False, own_generate=True),
)
