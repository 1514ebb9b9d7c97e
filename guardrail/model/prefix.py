"""Read many text prompts faster: what they all begin with is run once.

With a long system prompt in the chat template, most of a short prompt is the same for all. Whether
a model allows the short cut (causal attention, positions that follow from the mask) is not assumed:
the first batch is read both ways.
"""

from __future__ import annotations

import copy
import logging
from os.path import commonprefix
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from guardrail.model.decoder import cache_argument, decoder_layers, self_attention_layers
from guardrail.model.generate import last_residuals
from guardrail.model.hooks import prompt_hooks
from guardrail.model.prefill import PrefillDoneError, PromptCall
from guardrail.types import Message, Request, TextPart

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guardrail.model.encode import Encoded, Encoder
    from guardrail.model.load import LoadedModel
    from guardrail.model.prefill import ReadingLike

log = logging.getLogger(__name__)

PLAIN_INPUTS = {"input_ids", "attention_mask"}
TOLERANCE = 1e-3  # largest difference in a layer, relative to its residuals' mean length
WORTH_IT = 8  # shared tokens below which the short cut saves nothing
# What their prompts share comes before a user's first word, whatever it is.
_ANY = tuple(
    Request((Message(role="user", parts=(TextPart(text),)),)) for text in ("a", "7", "The")
)


R = TypeVar("R", bound="ReadingLike | None")


def _nothing(_prompt_len: int) -> None:
    """No reading but of the last position."""


class SharedPrefix:
    """Residuals of text prompts whose first tokens are the same; falls back where that fails."""

    def __init__(
        self,
        loaded: LoadedModel,
        encoder: Encoder,
        *,
        alike: Sequence[Request] = (),
        layers: Sequence[int] | None = None,
    ) -> None:
        """Share what `alike` have in common at their start; by default the template's own words.

        `layers` ascend; None reads all of them.
        """
        self._loaded = loaded
        count = len(decoder_layers(loaded.model))
        self._layers = tuple(range(count)) if layers is None else tuple(layers)
        self._tokens = _common_start(encoder, alike or _ANY)
        self._cache: Any = None
        # Where layers do not always run, prompts are read whole.
        self._state = "new" if len(self_attention_layers(loaded.model)) == count else "off"

    def residuals(self, encoded: Encoded, read: Callable[[int], R]) -> tuple[Tensor, R]:
        """As `last_residuals` over the layers: (rows, k, d_model) float32 on the CPU.

        `read` makes a reading of a batch whose prompts have that many positions; the one that saw
        the pass is given back, too.
        """
        if self._state == "checked" and set(encoded.inputs) == PLAIN_INPUTS and self._fits(encoded):
            return self._tail(encoded, read)
        reading = read(encoded.prompt_len)
        plain = last_residuals(self._loaded, encoded, self._layers, reading=reading)
        if self._state == "new" and set(encoded.inputs) == PLAIN_INPUTS:
            self._state = "checked" if self._works(encoded, plain) else "off"
        return plain, reading

    def _works(self, encoded: Encoded, plain: Tensor) -> bool:
        if len(self._tokens) < WORTH_IT or not self._fits(encoded):
            return False
        try:
            self._cache = self._prefilled(self._tokens)
            quick, _ = self._tail(encoded, _nothing)
        except (RuntimeError, ValueError, TypeError, AttributeError, NotImplementedError) as error:
            log.info("prompts are read whole: the model does not take a cached start (%s)", error)
            return False
        apart = (quick - plain).norm(dim=-1).amax(0)
        close = bool((apart <= TOLERANCE * plain.norm(dim=-1).mean(0)).all())
        if not close:
            log.info("prompts are read whole: a cached start changes this model's residuals")
        return close

    def _fits(self, encoded: Encoded) -> bool:
        """Whether every row begins with the shared tokens and goes on after them."""
        n = len(self._tokens)
        rows = (_unpadded(encoded, i) for i in range(len(encoded.kinds)))
        return all(len(row) > n and row[:n] == self._tokens for row in rows)

    @torch.no_grad()
    def _prefilled(self, tokens: list[int]) -> Any:
        model: Any = self._loaded.model
        ids = torch.tensor([tokens], device=self._loaded.device)
        output = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        return getattr(output, cache_argument(model))

    @torch.no_grad()
    def _tail(self, encoded: Encoded, read: Callable[[int], R]) -> tuple[Tensor, R]:
        """Run only what follows the shared tokens, padded on the left behind them."""
        model: Any = self._loaded.model
        n, count = len(self._tokens), len(encoded.kinds)
        tails = [_unpadded(encoded, i)[n:] for i in range(count)]
        width = max(map(len, tails))
        ids = torch.tensor([[tail[0]] * (width - len(tail)) + tail for tail in tails])
        mask = torch.ones(count, n + width, dtype=torch.long)
        for i, tail in enumerate(tails):
            mask[i, n : n + width - len(tail)] = 0
        positions = (mask.cumsum(-1) - 1)[:, n:]
        cache = copy.deepcopy(self._cache)
        cache.batch_repeat_interleave(count)
        reading = read(n + width)
        call = PromptCall(
            prompt_len=n + width,
            kinds=encoded.kinds,
            layers=self._layers,
            leave_after_readout=True,
            reading=reading,
        )
        with prompt_hooks(self._loaded.model, self._layers) as hooks, hooks.active(call):
            try:
                model(
                    input_ids=ids.to(self._loaded.device),
                    attention_mask=mask.to(self._loaded.device),
                    position_ids=positions.to(self._loaded.device),
                    use_cache=True,
                    logits_to_keep=1,
                    **{cache_argument(model): cache},
                )
            except PrefillDoneError:
                pass
        return call.recorded(), reading


def _unpadded(encoded: Encoded, row: int) -> list[int]:
    ids: list[int] = encoded.inputs["input_ids"][row].tolist()
    return ids[len(ids) - encoded.lengths[row] :]


def _common_start(encoder: Encoder, requests: Sequence[Request]) -> list[int]:
    """The tokens that all of these requests begin with."""
    rows = [_unpadded(encoder.encode([request]), 0) for request in requests]
    return list(commonprefix(rows))  # noqa: RUF071  # of any sequences, not of paths alone
