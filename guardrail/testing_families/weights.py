"""Random weights under which every part of a model matters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_SWITCHES = ("gate", "lambda_", "layer_scale")
"""Vectors that scale a whole branch, and start at (or near) nought in untrained models."""


def randomise(model: PreTrainedModel, special_ids: list[int], seed: int) -> None:
    """Draw all matrices anew, wide enough that the last position depends on the whole prompt.

    The special tokens get the logit 0, which is never the largest of several hundred random ones.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            parameter.data.normal_(0.0, 0.25, generator=generator)
        elif any(switch in name for switch in _SWITCHES) and not name.endswith(".bias"):
            parameter.data.fill_(0.5)
        elif name.endswith(".A_log"):
            parameter.data.fill_(-4.0)  # a recurrent state that forgets slowly, not at once
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    head.weight.data[special_ids] = 0.0
