"""AUROC of several scorers on the same prompts, and of their differences, with intervals.

The figure a fit chooses by averages AUROCs over kinds of safe prompts and over forms. One prompt
appears in several forms, so its rows are no independent draws: variances are taken over prompts
(Obuchowski 1997, section 2: DeLong's placements summed within a cluster).
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guardrail.stats import Estimate, auroc_interval

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_Z = 1.959964  # of a 95 % interval


@dataclass(frozen=True)
class Judged:
    """Rows of one form: `prompts` and `kinds` say what each is, `scores` what a scorer gave it."""

    prompts: Sequence[int]
    kinds: Sequence[str]
    scores: Sequence[float]


@dataclass(frozen=True)
class MeanAuroc:
    """An averaged AUROC and how much each prompt of each class moves it from its expectation."""

    value: float
    influence: Mapping[tuple[bool, int], float]

    def estimate(self) -> Estimate:
        """With its interval, kept inside 0 and 1.

        Placements do not vary where no pair is out of order; the interval is then that of as many
        prompts, each counted once, in perfect order.
        """
        reach = _reach(self.influence)
        low, high = max(0.0, self.value - reach), min(1.0, self.value + reach)
        if self.value in (0.0, 1.0):
            unsafe = sum(label for label, _ in self.influence)
            classes = [self.value] * unsafe, [1 - self.value] * (len(self.influence) - unsafe)
            low, high = auroc_interval(*classes)
        return Estimate(value=self.value, low=low, high=high)

    def above(self, other: MeanAuroc) -> Estimate:
        """How much higher this is than another on the same prompts."""
        difference = {
            prompt: moved - other.influence[prompt] for prompt, moved in self.influence.items()
        }
        value, reach = self.value - other.value, _reach(difference)
        return Estimate(value=value, low=value - reach, high=value + reach)


def mean_auroc(forms: Sequence[Judged]) -> MeanAuroc:
    """The mean over forms of the mean over kinds of the AUROC against unsafe prompts.

    Raises:
        ValueError: a form lacks one of the classes, or a score is NaN.
    """
    parts = [_of_form(form) for form in forms]
    moved: dict[tuple[bool, int], float] = defaultdict(float)
    for _, influence in parts:
        for prompt, amount in influence.items():
            moved[prompt] += amount / len(parts)
    return MeanAuroc(sum(value for value, _ in parts) / len(parts), dict(moved))


def _of_form(form: Judged) -> tuple[float, dict[tuple[bool, int], float]]:
    import numpy as np

    rows: dict[str, list[tuple[int, float]]] = defaultdict(list)
    for prompt, kind, score in zip(form.prompts, form.kinds, form.scores, strict=True):
        if math.isnan(score):
            raise ValueError("AUROC of NaN scores is undefined")
        rows[kind].append((prompt, score))
    unsafe = rows.pop("unsafe", [])
    if not unsafe or not rows:
        raise ValueError("AUROC needs scores of both classes")
    influence: dict[tuple[bool, int], float] = defaultdict(float)
    high, total = np.array([score for _, score in unsafe]), 0.0
    for safe in rows.values():
        low = np.array([score for _, score in safe])
        won = (high[:, None] > low).astype(float) + 0.5 * (high[:, None] == low)
        value = float(won.mean())
        total += value / len(rows)
        for group, label, placed in ((unsafe, True, won.mean(1)), (safe, False, won.mean(0))):
            for (prompt, _), place in zip(group, placed.tolist(), strict=True):
                influence[label, prompt] += (place - value) / len(group) / len(rows)
    return total, influence


def _reach(influence: Mapping[tuple[bool, int], float]) -> float:
    """Half the width of the interval: classes vary on their own, prompts within them are drawn."""
    variance = 0.0
    for label in (True, False):
        moved = [amount for (of, _), amount in influence.items() if of is label]
        correction = len(moved) / max(len(moved) - 1, 1)
        variance += correction * sum(amount**2 for amount in moved)
    return _Z * math.sqrt(variance)
