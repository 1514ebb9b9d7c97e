"""Residuals made by hand, in place of what a collector reads."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from guardrail.fit.collect import Read, text_request
from guardrail.fit.prompts import Sample
from guardrail.fit.readings import FormResiduals

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


def read_of(
    last: torch.Tensor,
    *parts: torch.Tensor,
    layers: tuple[int, ...] = (),
    headers: torch.Tensor | None = None,
) -> Read:
    """A prompt by its last residual (L, d), the tokens (n, k, d) of its parts, and its headers."""
    width = last.shape[-1]
    earlier = torch.zeros(0, *last.shape) if headers is None else headers
    tokens = torch.cat([torch.zeros(0, len(layers), width), *parts]).half()
    lengths = tuple(len(part) for part in parts)
    own = (*lengths, *[0] * (1 + len(earlier) - len(lengths)))[-1 - len(earlier) :]
    return Read(last, earlier, ("text",) * len(earlier), tokens, lengths, layers, own)


def form_of(
    residuals: torch.Tensor,
    splits: Sequence[str],
    kinds: Sequence[str],
    samples: Sequence[Sample] | None = None,
) -> FormResiduals:
    """Prompts of one turn by their last residuals (n, L, d); texts without samples of their own."""
    made = [Sample(i, "plain", text_request("x")) for i in range(len(residuals))]
    return FormResiduals(samples or made, list(map(read_of, residuals)), splits, kinds)


def mapped(form: FormResiduals, change: Callable[[torch.Tensor], torch.Tensor]) -> FormResiduals:
    """The same prompts with a change of everything that was read of them, (..., d) to (..., d)."""
    reads = [
        replace(r, last=change(r.last), headers=change(r.headers), tokens=change(r.tokens))
        for r in form.reads
    ]
    return replace(form, reads=reads)


def with_last(form: FormResiduals, residuals: torch.Tensor) -> FormResiduals:
    """The same prompts with other residuals at their last positions, (n, L, d)."""
    pairs = zip(form.reads, residuals, strict=True)
    return replace(form, reads=[replace(read, last=row) for read, row in pairs])
