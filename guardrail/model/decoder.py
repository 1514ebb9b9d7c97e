"""The text decoder inside any vision-language model, without naming families.

Where its layers are, how they hand the residual stream on, and what its cache has seen. Releases of
transformers before 5.24 call the cache's argument and the output's field `past_key_values`, later
ones `cache`.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from guardrail.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedModel


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder's layers, in order: the shallowest list with the text config's length."""
    return _find(model)[1]


def decoder_module(model: PreTrainedModel) -> nn.Module:
    """The module whose forward pass runs those layers: it sees the cache and the new positions."""
    return _find(model)[0]


def self_attention_layers(model: PreTrainedModel) -> tuple[int, ...]:
    """Layers that run for every prompt: all but those that only attend to a picture (Mllama)."""
    config = model.config.get_text_config(decoder=True)
    cross = set(getattr(config, "cross_attention_layers", None) or ())
    return tuple(i for i in range(len(decoder_layers(model))) if i not in cross)


def context_length(model: PreTrainedModel) -> int | None:
    """How many positions the model was built for; None when its config does not say."""
    config = model.config.get_text_config(decoder=True)
    value = getattr(config, "max_position_embeddings", None)
    return value if isinstance(value, int) and value > 0 else None


def hidden_of(output: Any) -> Tensor:
    """The residual stream in what a layer returns: itself, or the first of several things.

    Raises:
        UnsupportedModelError: it is no (rows, length, d_model); Gemma 3n has four streams at once.
    """
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    if hidden.dim() != 3:
        raise UnsupportedModelError(
            f"a layer of this model gives a residual of shape {tuple(hidden.shape)}; a guard reads "
            "one stream, of rows, positions and width: this model cannot be guarded"
        )
    return hidden


def require_length(layer: int, hidden: Tensor, length: int) -> None:
    """Make sure that the positions of `hidden` (rows, positions, d_model) are the last of `length`.

    Raises:
        UnsupportedModelError: there are more, and which token one belongs to is not known.
    """
    if hidden.shape[1] > length:
        raise UnsupportedModelError(
            f"layer {layer} of this model gives {hidden.shape[1]} positions for {length} tokens; "
            "which token a position belongs to is not known, so it cannot be guarded"
        )


def moved(hidden: Tensor, where: slice, delta: Tensor) -> Tensor:
    """`hidden` (rows, length, d_model) with each row's edit added at the positions of `where`.

    They are counted from the end; those that `hidden` lacks are left out.
    """
    result = hidden.clone()
    exact = torch.promote_types(hidden.dtype, torch.float32)  # adding zero changes no bit
    added = hidden[:, where].to(exact) + delta.to(hidden.device, exact)[:, None]
    result[:, where] = added.to(hidden.dtype)
    return result


def passed_cache(values: Iterable[Any]) -> Any | None:
    """The cache among a forward pass's arguments.

    It is known by what it can do: a guard that looked for a name missed the cache when the name
    changed, took every later token for the first, and steered tokens that were not to be steered.
    """
    return next((value for value in values if hasattr(value, "get_seq_length")), None)


def positions_in(cache: Any) -> int:
    """How many positions a cache has seen.

    Raises:
        UnsupportedModelError: it does not count them; models without any attention have such ones.
    """
    try:
        return int(cache.get_seq_length())
    except ValueError as error:
        raise UnsupportedModelError(
            "the cache of this model counts no positions (it has no attention layer), so a guard "
            f"cannot tell the prompt from the answer: {error}"
        ) from error


def cache_argument(model: PreTrainedModel) -> str:
    """What the model's `forward` calls its cache."""
    names = inspect.signature(model.forward).parameters
    return "cache" if "cache" in names else "past_key_values"


def _find(model: PreTrainedModel) -> tuple[nn.Module, nn.ModuleList]:
    """The owner and the list of the decoder's layers."""
    name = type(model).__name__
    if getattr(model.config, "is_encoder_decoder", False):
        raise UnsupportedModelError(
            f"{name} is an encoder-decoder; a guard reads the prompt inside a decoder-only model"
        )
    untyped: Any = model
    decoder = untyped.get_decoder()
    count = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    if not isinstance(decoder, nn.Module) or not isinstance(count, int):
        raise UnsupportedModelError(f"{name} names no text decoder with a known number of layers")
    found = layer_list(decoder, count)
    if found is None:
        raise UnsupportedModelError(
            f"the text decoder of {name} holds no list of {count} layers; it cannot be guarded"
        )
    path, layers = found
    owner, _, _ = path.rpartition(".")
    return decoder.get_submodule(owner), layers


def layer_list(decoder: nn.Module, count: int) -> tuple[str, nn.ModuleList] | None:
    """Path and list of a decoder's `count` layers, the shallowest such; None if there is none."""
    found = [
        (path, module)
        for path, module in decoder.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    return min(found, key=lambda pair: pair[0].count("."), default=None)
