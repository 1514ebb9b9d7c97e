"""The joint score: of windows, and of the readout at the ends of turns, on one scale.

Windows find a request among words; the readout at the end of a turn tells short look-alikes apart,
and says something of messages too short for a window. Which windows, and whether such messages are
all that ends count for, is decided on the selection split.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from guardrail.fit.select import is_safe, is_unsafe, separation
from guardrail.fit.windows import TokenRows, over_layers, trained
from guardrail.stats import auroc

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from guardrail.decide.windows import WindowReadout
    from guardrail.fit.collect import Progress, Read
    from guardrail.fit.readings import FormResiduals
    from guardrail.fit.select import LinearReadout

WIDTHS, FIRSTS = (16, 32), (4, 8)
TAIL = 0.95  # share of safe prompts where both readouts' scores are laid over each other
SHARP = 0.02  # AUROC of bare look-alikes that windows may cost: its standard error in a fit
LOOKALIKES = ("matched", "near")
NOTHING = torch.tensor([-math.inf], dtype=torch.float64)  # below every score


@dataclass(frozen=True)
class JointReadout:
    """What a guard scores a request by; without `windows` the ends of its turns alone.

    `turns` says whether the ends of earlier turns are read.
    """

    readout: LinearReadout
    windows: WindowReadout | None = None
    turns: bool = True

    def scores(self, form: FormResiduals) -> Tensor:
        """Scores of a form's prompts as a guard would give them, (n,) float64."""
        last = self.readout.scores(torch.stack([read.last for read in form.reads]), form.media)
        outdone = torch.tensor([self._suffices(read.own[-1]) for read in form.reads])
        found = [last.masked_fill(outdone & last.isfinite(), -math.inf)]
        if self.turns:
            found.append(torch.stack([self._highest_turn(read) for read in form.reads]))
        if self.windows is not None:
            found.append(highest_windows(self.windows, form.reads))
        return torch.stack(found).amax(0)  # NaN where a reading failed

    def _suffices(self, tokens: int) -> bool:
        return self.windows is not None and self.windows.suffice(tokens)

    def _highest_turn(self, read: Read) -> Tensor:
        """Of the turns before the last one, () float64; -inf where there is none."""
        count = [not self._suffices(tokens) for tokens in read.own[:-1]]
        if not any(count):
            return NOTHING[0]
        scores = self.readout.scores(read.headers, read.kinds)
        return scores[torch.tensor(count)].amax()


def highest_windows(windows: WindowReadout, reads: Sequence[Read]) -> Tensor:
    """The highest window of each prompt, (n,) float64; -inf where there is none.

    NaN where a token was not read, in whichever part.
    """
    highest = []
    for read in reads:
        products = torch.stack(
            [windows.products(i, read.tokens[:, read.layers.index(i)]) for i in windows.layers],
            dim=1,
        )
        parts = torch.split(products, list(read.lengths))
        highest.append(torch.cat([NOTHING, *map(windows.scores, parts)]).amax())
    return torch.stack(highest) if highest else NOTHING[:0]


def fit_windows(
    forms: Mapping[str, FormResiduals],
    readout: LinearReadout,
    layers: Sequence[int],
    *,
    progress: Progress | None = None,
) -> tuple[WindowReadout, dict[str, object]]:
    """Train windows on the fit split and choose everything else on the selection split.

    Width and first end are those with the highest mean AUROC over forms. Then both readouts are
    laid over each other where it counts, at the tail of the safe prompts. Nothing said later lowers
    a window, so windows suffice where there are any, unless bare look-alikes are told apart better
    at the ends of turns, by more than `SHARP`: then the higher of both counts.
    """
    told = None if progress is None else (lambda i, n: progress("windows", i, n))
    singles = trained(token_rows(forms, layers), progress=told)
    tried = [
        (made := over_layers(singles, width, first), _aurocs(made, forms))
        for width, first in product(WIDTHS, FIRSTS)
    ]
    best, aurocs = max(tried, key=lambda pair: _mean(pair[1]))
    placed, figures = _placed(best, readout, forms)
    compared = [
        {"width": made.width, "first": made.first, "auroc": _mean(found)} for made, found in tried
    ]
    return placed, {"auroc": _mean(aurocs), "auroc_by_form": aurocs, "compared": compared} | figures


def token_rows(
    forms: Mapping[str, FormResiduals], layers: Sequence[int], split: str = "fit"
) -> TokenRows:
    """The tokens of a split's prompts, whatever their form."""
    rows = [
        (read, is_unsafe(kind))
        for form in forms.values()
        for read, s, kind in zip(form.reads, form.splits, form.kinds, strict=True)
        if s == split and len(read.tokens) > 1
    ]
    return TokenRows(tuple(layers), [read.tokens for read, _ in rows], [u for _, u in rows])


def _aurocs(windows: WindowReadout, forms: Mapping[str, FormResiduals]) -> dict[str, float]:
    """AUROC on the selection split, by form."""
    found = {}
    for name, form in forms.items():
        held = form.of("select")
        if held.reads and len(set(map(is_unsafe, held.kinds))) == 2:
            found[name] = separation(_finite(highest_windows(windows, held.reads)), held.kinds).mean
    return found


def _finite(scores: Tensor) -> Tensor:
    """Prompts too short for a window score below all others."""
    known = scores[scores.isfinite()]
    return scores.where(scores.isfinite(), float(known.min()) - 1.0 if len(known) else 0.0)


def _mean(values: Mapping[str, float]) -> float:
    return sum(values.values()) / max(len(values), 1)


def _placed(
    windows: WindowReadout, readout: LinearReadout, forms: Mapping[str, FormResiduals]
) -> tuple[WindowReadout, dict[str, object]]:
    """The windows on the readout's scale, and how they were put there."""
    held = [form.of("select") for form in forms.values()]
    kinds = [kind for form in held for kind in form.kinds]
    ends = torch.cat([readout.scores(form.residuals, form.media) for form in held if form.reads])
    raw = _finite(torch.cat([highest_windows(windows, form.reads) for form in held]))
    safe = torch.tensor([is_safe(kind) for kind in kinds])
    bare = forms["plain"].of("select")
    alone = readout.scores(bare.residuals, bare.media)
    own = _finite(highest_windows(windows, bare.reads))
    sharp = _lookalike_auroc(alone, bare.kinds)
    kept = _lookalike_auroc(own, bare.kinds)
    placed = _laid(windows, raw, ends, safe, alone=kept >= sharp - SHARP)
    return placed, {"lookalikes": kept, "lookalikes_at_ends": sharp}


def _laid(
    windows: WindowReadout, raw: Tensor, ends: Tensor, safe: Tensor, *, alone: bool
) -> WindowReadout:
    """Raw scores put so that both tails of safe prompts, and both means of unsafe ones, agree."""
    low, high = float(raw[safe].quantile(TAIL)), float(raw[~safe].mean())
    at, one = float(ends[safe].quantile(TAIL)), float(ends[~safe].mean())
    if not (high > low and one > at):  # no order to keep: windows never decide
        return replace(windows, zero=float(raw.max()) + 1.0, gap=1.0, alone=False)
    gap = (high - low) / (one - at)
    return replace(windows, zero=low - at * gap, gap=gap, alone=alone)


def _lookalike_auroc(scores: Tensor, kinds: Sequence[str]) -> float:
    values = list(zip(scores.tolist(), kinds, strict=True))
    unsafe = [score for score, kind in values if is_unsafe(kind)]
    alike = [score for score, kind in values if kind in LOOKALIKES]
    alike = alike or [score for score, kind in values if is_safe(kind)]
    return auroc(unsafe, alike)
