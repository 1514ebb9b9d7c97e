"""What the configurations of the families have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guardrail.testing_families.tokens import CONTEXT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from transformers import PreTrainedTokenizerFast

LAYERS = 4
HIDDEN = 32
CELL = 28
"""Side of the square picture, in pixels, that the smallest towers take."""

MROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10_000.0}


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


def text(tokenizer: PreTrainedTokenizerFast, **extra: Any) -> dict[str, Any]:
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
        "bos_token_id": tokenizer.bos_token_id,
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


def ids(tokenizer: PreTrainedTokenizerFast, names: Iterable[str]) -> list[Any]:
    """The ids of special tokens, by their text."""
    return [tokenizer.convert_tokens_to_ids(name) for name in names]
