"""Windows over the tokens of a prompt's parts: a readout that nothing behind them can lower.

In a causal decoder the residual at a position depends on nothing behind it. So windows that end at
every token of a part, and reach back no further than its start, keep their scores whatever is
appended: for x with anything behind it, the highest of its windows is at least what it was. (Words
*before* a request can lower it; that is measured.) What is read of a token is boiled down where its
layer runs, to two numbers a head: how much attention it draws, and what it says.

The readout is an attention probe per layer (as in arXiv 2601.11516 and 2601.04603): `heads` queries
and values, trained with one softmax over all tokens of a prompt, judged on windows.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Sequence

_AT_ONCE = 4096  # windows whose softmax is taken together, so that a long part fits into memory


@dataclass(frozen=True)
class WindowReadout:
    """Queries and values of `heads` heads at k layers, ascending: (k, heads, d_model) float32.

    A window's raw score is, per layer, the sum over heads of the attention-weighted mean of its
    values, plus `bias` (k,); layers are averaged. On the scale of scores it is
    (raw - `zero`) / `gap`. Windows are of `width` tokens at most and end at every token of a part
    from number `first` on. With `alone` the end of a turn counts only where its message is too
    short for a window; so no message that has one scores less for what comes behind it.
    """

    layers: tuple[int, ...]
    query: Tensor
    value: Tensor
    bias: Tensor
    width: int
    first: int
    zero: float = 0.0
    gap: float = 1.0
    alone: bool = False

    def suffice(self, tokens: int) -> bool:
        """Whether a message of so many tokens is judged by its windows, and not at its end."""
        return self.alone and tokens >= self.first

    def products(self, layer: int, hidden: Tensor) -> Tensor:
        """What is kept of a layer's output (..., d_model): (..., 2, heads) float32, its device."""
        weight = self.weight(layer).to(hidden.device)
        found: Tensor = torch.einsum("...d,thd->...th", hidden.float(), weight)
        return found

    def weight(self, layer: int) -> Tensor:
        """Queries and values of one layer, (2, heads, d_model) float32."""
        at = self.layers.index(layer)
        return torch.stack([self.query[at], self.value[at]])

    def of_each(self, products: Tensor) -> Tensor:
        """Score of one window in each row, over all its tokens, in any order.

        Args:
            products: (rows, width, k, 2, heads) float64; a query of -inf is no token.

        Returns:
            (rows,) float64, on the scale of scores; NaN where a product is.
        """
        query, value = products.unbind(3)
        read = (query.softmax(1) * value).sum((1, 3)) + self.bias.double()
        return (read.mean(-1) - self.zero) / self.gap

    def raw(self, products: Tensor) -> Tensor:
        """Raw scores of the windows of one part.

        Args:
            products: (n, k, 2, heads), of the part's tokens in order.

        Returns:
            (max(n - first + 1, 0),) float64; the window that ends at token number `first` comes
            first. NaN where a token's products are not finite.
        """
        ends = len(products) - self.first + 1
        if ends <= 0:
            return torch.zeros(0, dtype=torch.float64)
        wide = products.double().where(products.isfinite(), math.nan)  # -inf is padding's alone
        before = wide.new_zeros(self.width - 1, *wide.shape[1:])
        before[:, :, 0] = -math.inf  # draws no attention
        padded = torch.cat([before, wide])
        found = []
        for start in range(self.first - 1, len(wide), _AT_ONCE):
            some = padded[start : start + _AT_ONCE + self.width - 1]
            query, value = some.unfold(0, self.width, 1).unbind(2)  # (ends, k, heads, width)
            value = value.where(query > -math.inf, 0.0)
            read = (query.softmax(-1) * value).sum((-1, -2)) + self.bias.double()
            found.append(read.mean(-1))
        return torch.cat(found)

    def scores(self, products: Tensor) -> Tensor:
        """The same on the scale of scores: 0 the text-safe, 1 the text-unsafe prompts."""
        return (self.raw(products) - self.zero) / self.gap

    def highest(self, products: Tensor) -> tuple[float, int] | None:
        """The highest score of a part's windows and the token it ends at; None if there are none.

        NaN wherever a token that a window could hold was not read.
        """
        scores = self.scores(products)
        if not len(scores):
            return None
        if not bool(scores.isfinite().all()):
            return math.nan, len(products) - 1
        best = int(scores.argmax())
        return float(scores[best]), best + self.first - 1


def joined(readouts: Sequence[WindowReadout]) -> WindowReadout:
    """One readout over the layers of several, which have one layer each and the rest in common."""
    parts = sorted(readouts, key=lambda one: one.layers)
    first = parts[0]
    return WindowReadout(
        layers=tuple(layer for part in parts for layer in part.layers),
        query=torch.cat([part.query for part in parts]),
        value=torch.cat([part.value for part in parts]),
        bias=torch.cat([part.bias for part in parts]),
        width=first.width,
        first=first.first,
    )
