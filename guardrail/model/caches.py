"""The key-value cache of a forward pass, by whatever name the installed transformers gives it.

Releases before 5.24 call the argument and the output's field `past_key_values`, later ones `cache`.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from transformers import PreTrainedModel


def passed_cache(values: Iterable[Any]) -> Any | None:
    """The cache among a forward pass's arguments.

    It is known by what it can do: a guard that looked for a name missed the cache when the name
    changed, took every later token for the first, and steered tokens that were not to be steered.
    """
    return next((value for value in values if hasattr(value, "get_seq_length")), None)


def cache_argument(model: PreTrainedModel) -> str:
    """What the model's `forward` calls its cache."""
    names = inspect.signature(model.forward).parameters
    return "cache" if "cache" in names else "past_key_values"
