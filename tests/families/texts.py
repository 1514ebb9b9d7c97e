"""Decoders without eyes: plain, sliding, with experts, with a recurrent state."""

from __future__ import annotations

from typing import Any

import transformers

from guardrail.testing.families import HIDDEN, Family, family, text
from guardrail.testing.tokens import tokenizer
from tests.families.gemmas import SLIDING
from tests.families.qwens import linear_attention

_hf: Any = transformers


def _qwen3() -> tuple[Any, Any]:
    words = tokenizer()
    return _hf.Qwen3Config(**text(words)), words


def _gemma2() -> tuple[Any, Any]:
    words = tokenizer()
    return _hf.Gemma2Config(**text(words, query_pre_attn_scalar=8, **SLIDING)), words


def _mixtral() -> tuple[Any, Any]:
    words = tokenizer()
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    return _hf.MixtralConfig(**text(words, sliding_window=None, **experts)), words


def _gpt_oss() -> tuple[Any, Any]:
    """Attention with sinks, in sliding windows in every other layer."""
    words = tokenizer()
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    rope = {"rope_type": "default", "rope_theta": 10_000.0}
    return _hf.GptOssConfig(**text(words, rope_parameters=rope, **SLIDING, **experts)), words


def _qwen3_next() -> tuple[Any, Any]:
    words = tokenizer()
    experts = {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": HIDDEN,
        "shared_expert_intermediate_size": HIDDEN,
    }
    return _hf.Qwen3NextConfig(**text(words, **linear_attention(), **experts)), words


def _granitemoehybrid() -> tuple[Any, Any]:
    """Mamba layers, with a state that is no key and no value, between those with attention."""
    words = tokenizer()
    mixed = {
        "layer_types": ["mamba", "attention"] * 2,
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_chunk_size": 8,
        "num_local_experts": 0,
        "shared_intermediate_size": 2 * HIDDEN,
    }
    return _hf.GraniteMoeHybridConfig(**text(words, **mixed)), words


_BUILDS = (_qwen3, _gemma2, _mixtral, _gpt_oss, _qwen3_next, _granitemoehybrid)
_OTHERS = (
    Family(build.__name__.removeprefix("_"), build, pictures=False, mixed_batch=False)
    for build in _BUILDS
)
FAMILIES = (family("llama"), *_OTHERS)
