"""Prompts that are read in chunks (`prefill_chunk_size`): only where that changes nothing.

A chunk cannot see what comes after it. Models that read a picture, or the whole prompt, in both
directions would silently get other residuals, so other scores.
"""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from guardrail.errors import GuardrailError, UnsupportedModelError
from guardrail.model.rerun import HALF_TOLERANCE, TOLERANCE

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable

    from transformers import PreTrainedModel

    from guardrail.model.encode import Encoded
    from guardrail.model.load import LoadedModel

_TYPES = ("token_type_ids", "mm_token_type_ids")  # what models make their masks from
# Per model: what was read both ways and came out the same.
_PROVEN: WeakKeyDictionary[PreTrainedModel, set[Hashable]] = WeakKeyDictionary()


def require_exact_chunks(
    loaded: LoadedModel, encoded: Encoded, size: int, read: Callable[[int | None], Tensor]
) -> None:
    """Make sure that reading this batch in chunks of `size` gives what reading it whole gives.

    The first batch of each sort (see `_sort`) is read both ways: `read(size)` gives its residuals,
    (rows, k, d_model), and `read(None)` those of the prompt as a whole.

    Raises:
        UnsupportedModelError: it does not; the message says what to unset.
    """
    if encoded.prompt_len <= size:
        return
    model, pictures = loaded.model, set(encoded.kinds) != {"text"}
    if pictures and getattr(model.config.get_text_config(), "cross_attention_layers", None):
        raise _refusal(model, size, "a picture reaches its cross-attention layers as a whole")
    if _looks_ahead(model, encoded):
        raise _refusal(model, size, "its positions see later ones of the same block")
    proven, sort = _PROVEN.setdefault(model, set()), _sort(model, encoded, size)
    if sort not in proven:
        if not _same(_in_chunks(model, size, read), read(None), loaded.dtype):
            raise _refusal(model, size, "its residuals come out differently in chunks")
        proven.add(sort)


def _in_chunks(model: PreTrainedModel, size: int, read: Callable[[int | None], Tensor]) -> Tensor:
    """What is read in chunks of that size; a model that fails so is refused, and says how."""
    try:
        return read(size)
    except (GuardrailError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a border: whatever the model's own code trips over
        said = f"it fails in chunks: {type(error).__name__}: {str(error)[:200]}"
        raise _refusal(model, size, said) from error


def _sort(model: PreTrainedModel, encoded: Encoded, size: int) -> Hashable:
    """What decides which of a model's ways through a prompt a batch takes."""
    padded = len(set(encoded.lengths)) > 1
    attention = model.config.get_text_config()._attn_implementation
    cache = model.generation_config.cache_implementation
    return frozenset(encoded.kinds), padded, size, attention, cache


def _refusal(model: PreTrainedModel, size: int, why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"the model's generation_config sets prefill_chunk_size={size}, which changes what "
        f"{type(model).__name__} reads in this prompt ({why}); unset it"
    )


def _looks_ahead(model: PreTrainedModel, encoded: Encoded) -> bool:
    """Whether two neighbours of a type that occurs in this batch see each other.

    Such models bring their own function for masks, which is asked about two positions.
    """
    own: Any = getattr(type(model), "create_masks_for_generate", None)
    if own is None:
        return False
    takes = inspect.signature(own).parameters
    config = copy.deepcopy(model.config)
    config._attn_implementation = "eager"  # the form in which a mask can be read
    for name in (name for name in _TYPES if name in takes):
        # A model whose types go unsaid takes a prompt for one of type 0.
        given = encoded.inputs.get(name, torch.zeros(1, dtype=torch.long))
        for value in given.unique().tolist():
            types = torch.full((1, 2), value, dtype=torch.long)
            if _sees_next(own, config, {name: types}):
                return True
    return False


def _sees_next(own: Any, config: Any, types: dict[str, Tensor]) -> bool:
    masks = own(
        config=config,
        inputs_embeds=torch.zeros(1, 2, 1),
        attention_mask=torch.ones(1, 2, dtype=torch.long),
        cache=None,
        position_ids=torch.arange(2)[None],
        is_first_iteration=True,
        **types,
    )
    every = masks.values() if isinstance(masks, dict) else [masks]
    return any(_allows(mask) for mask in every if isinstance(mask, Tensor) and mask.dim() == 4)


def _allows(mask: Tensor) -> bool:
    """Whether the first position sees the second: a boolean mask, or one added to the scores."""
    at = mask[..., 0, 1]
    return bool(at.any() if mask.dtype is torch.bool else (at == 0).any())


def _same(chunked: Tensor, whole: Tensor, dtype: torch.dtype) -> bool:
    """Whether a model of `dtype` gives the same residuals (rows, k, d_model), but for rounding."""
    tolerance = TOLERANCE.get(dtype, HALF_TOLERANCE)
    apart = (chunked - whole).norm(dim=-1).amax(0)
    return bool((apart <= tolerance * whole.norm(dim=-1).mean(0)).all())
