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

from guardrail.errors import UnsupportedModelError
from guardrail.model.rerun import HALF_TOLERANCE, TOLERANCE

if TYPE_CHECKING:
    from collections.abc import Callable

    from transformers import PreTrainedModel

    from guardrail.model.inputs import Encoded
    from guardrail.model.load import LoadedModel

_TYPES = ("token_type_ids", "mm_token_type_ids")  # what models make their masks from
# Per model: kinds of batches and sizes of chunks that were read both ways and came out the same.
_PROVEN: WeakKeyDictionary[PreTrainedModel, set[tuple[bool, int]]] = WeakKeyDictionary()


def require_exact_chunks(
    loaded: LoadedModel, encoded: Encoded, size: int, read: Callable[[int | None], Tensor]
) -> None:
    """Make sure that reading this batch in chunks of `size` gives what reading it whole gives.

    The first batch with pictures, and the first without, is read both ways: `read(size)` gives
    its residuals, (rows, k, d_model), and `read(None)` those of the prompt as a whole.

    Raises:
        UnsupportedModelError: it does not; the message says what to unset.
    """
    if encoded.prompt_len <= size:
        return
    model, pictures = loaded.model, set(encoded.kinds) != {"text"}
    if pictures and getattr(model.config.get_text_config(), "cross_attention_layers", None):
        _refuse(model, size, "a picture reaches its cross-attention layers as a whole")
    if _looks_ahead(model, encoded):
        _refuse(model, size, "its positions see later ones of the same block")
    proven = _PROVEN.setdefault(model, set())
    if (pictures, size) not in proven:
        if not _same(read(size), read(None), loaded.dtype):
            _refuse(model, size, "its residuals come out differently in chunks")
        proven.add((pictures, size))


def _refuse(model: PreTrainedModel, size: int, why: str) -> None:
    raise UnsupportedModelError(
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
