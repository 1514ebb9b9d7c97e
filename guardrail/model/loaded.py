"""A model in memory with what feeds it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

IN_MEMORY = "in memory"


@dataclass(frozen=True)
class LoadedModel:
    """A model in eval mode with what feeds it; `revision` is the commit, when the Hub gave one."""

    model: PreTrainedModel
    processor: ProcessorMixin | PreTrainedTokenizerBase
    source: str
    revision: str | None = None
    trust_remote_code: bool = False

    @property
    def name(self) -> str:
        """What to call the model: where it came from, or its class if it was made in memory."""
        return type(self.model).__name__ if self.source == IN_MEMORY else self.source

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The processor's tokenizer, or the processor itself when it is one."""
        tokenizer: Any = getattr(self.processor, "tokenizer", self.processor)
        result: PreTrainedTokenizerBase = tokenizer
        return result

    @property
    def device(self) -> torch.device:
        """Where inputs belong: the device on which the token embeddings run."""
        embeddings: Any = self.model.get_input_embeddings()
        hook = getattr(embeddings, "_hf_hook", None)
        # offloaded weights wait on `meta`; accelerate's hook knows where they will run
        for each in getattr(hook, "hooks", (hook,)):
            place = getattr(each, "execution_device", None)
            if place is not None:
                return torch.device(place)
        return torch.device(embeddings.weight.device)

    @property
    def dtype(self) -> torch.dtype:
        """What pictures are given in: the dtype of the first weights that can be calculated with.

        8-bit floats are a way of storing weights.
        """
        kinds = (p.dtype for p in self.model.parameters() if p.is_floating_point())
        return next((kind for kind in kinds if kind.itemsize > 1), torch.get_default_dtype())

    @property
    def layer_count(self) -> int:
        """How many decoder layers there are."""
        return int(self.model.config.get_text_config(decoder=True).num_hidden_layers)

    @property
    def d_model(self) -> int:
        """The width of the residual stream."""
        return int(self.model.config.get_text_config(decoder=True).hidden_size)

    @property
    def is_multimodal(self) -> bool:
        """Whether the processor takes pictures."""
        return getattr(self.processor, "image_processor", None) is not None
