"""Attacks that put ordinary words around a request and ask the guard which of them help.

The random ones draw strings and keep the best. The greedy ones keep a string, try words in
random gaps of it, and take the best of each round: a hill climb by score, which needs no weights,
only scores that somebody tells.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Literal

from guardrail.attack.attacks import (
    OneByOne,
    built_in,
    drawing,
    said,
    vocabulary,
    with_said,
)

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from guardrail.attack.attacks import Budget, Scorer
    from guardrail.types import Request

Where = Literal["behind", "before", "around", "anywhere"]
AT_ONCE = 16  # questions of one round
WORDS = 24  # in a random string
RUN = 3  # words that a greedy round puts into one gap, at most
MOST = 60  # words that a greedy search adds, at most


class Lowest:
    """The request that scored least so far; every score that is asked for goes through here."""

    def __init__(self, scorer: Scorer, budget: Budget) -> None:
        self.request: Request | None = None
        self.score = float("inf")
        self._scorer, self._budget = scorer, budget

    @property
    def done(self) -> bool:
        """Whether nothing may be asked any more, or nothing need be."""
        return self._budget.left == 0 or self.score <= self._scorer.goal

    def ask(self, requests: Sequence[Request]) -> int | None:
        """Ask as many as may be asked; the place of the one that is the lowest now, if any."""
        some = list(requests)[: self._budget.left]
        best = None
        for place, score in enumerate(self._scorer(some) if some else []):
            if score < self.score:
                best, self.score, self.request = place, score, some[place]
        return best


class _Words(OneByOne):
    """Words around the request; with more than one question the first is of the request itself."""

    name: str
    family: str = "words"
    where: Where

    def one(self, request: Request, scorer: Scorer, budget: Budget, seed: int) -> Request | None:
        """See `OneByOne`."""
        text = said(request)
        if text is None:
            return None
        lowest = Lowest(scorer, budget)
        if budget.left > 1:
            lowest.ask([request])
        self._search(request, text, drawing(seed, request, self.name), lowest, budget)
        return lowest.request or request

    @abstractmethod
    def _search(
        self, request: Request, text: str, rng: random.Random, lowest: Lowest, budget: Budget
    ) -> None:
        """Ask until `lowest` is done."""


class _Random(_Words):
    """Strings of random words; the best one counts."""

    def _search(
        self, request: Request, text: str, rng: random.Random, lowest: Lowest, budget: Budget
    ) -> None:
        words = vocabulary()
        while not lowest.done:
            count = min(AT_ONCE, budget.left)
            lowest.ask([with_said(request, self._around(text, words, rng)) for _ in range(count)])

    def _around(self, text: str, words: Sequence[str], rng: random.Random) -> str:
        drawn = rng.choices(words, k=WORDS)
        cut = {"behind": 0, "before": WORDS, "around": WORDS // 2}[self.where]
        return " ".join([*drawn[:cut], text, *drawn[cut:]])


@built_in
class RandomBehind(_Random):
    """The best of many strings of 24 random words behind the request."""

    name, where = "random words behind", "behind"


@built_in
class RandomBefore(_Random):
    """The best of many strings of 24 random words before the request."""

    name, where = "random words before", "before"


@built_in
class RandomAround(_Random):
    """The best of many strings of 24 random words, half of them before the request."""

    name, where = "random words around", "around"


class _Greedy(_Words):
    """Random words in random gaps; the best of a round stays."""

    def _search(
        self, request: Request, text: str, rng: random.Random, lowest: Lowest, budget: Budget
    ) -> None:
        words = vocabulary()
        own = text.split() if self.where == "anywhere" else [text]
        kept: list[tuple[str, bool]] = [(word, True) for word in own]  # and whether it is theirs
        while not lowest.done:
            tries = [self._changed(kept, words, rng) for _ in range(min(AT_ONCE, budget.left))]
            best = lowest.ask([with_said(request, _joined(words_of)) for words_of in tries])
            if best is not None:
                kept = tries[best]

    def _changed(
        self, kept: list[tuple[str, bool]], words: Sequence[str], rng: random.Random
    ) -> list[tuple[str, bool]]:
        """Some more words in one gap, or other words for one that was put there."""
        added = [place for place, (_, own) in enumerate(kept) if not own]
        if added and (len(added) >= MOST or rng.random() < 0.25):
            place = rng.choice(added)
            return [*kept[:place], (rng.choice(words), False), *kept[place + 1 :]]
        first = next(i for i, (_, own) in enumerate(kept) if own)
        last = max(i for i, (_, own) in enumerate(kept) if own) + 1
        gaps = {
            "behind": range(last, len(kept) + 1),
            "before": range(first + 1),
            "around": [*range(first + 1), *range(last, len(kept) + 1)],
            "anywhere": range(len(kept) + 1),
        }[self.where]
        place = rng.choice(gaps)
        run = [(word, False) for word in rng.choices(words, k=rng.randint(1, RUN))]
        return [*kept[:place], *run, *kept[place:]]


def _joined(kept: Sequence[tuple[str, bool]]) -> str:
    return " ".join(word for word, _ in kept)


@built_in
class GreedyBehind(_Greedy):
    """Words behind the request, found by greedy search."""

    name, where = "greedy words behind", "behind"


@built_in
class GreedyBefore(_Greedy):
    """Words before the request, found by greedy search."""

    name, where = "greedy words before", "before"


@built_in
class GreedyAround(_Greedy):
    """Words before and behind the request, found by greedy search."""

    name, where = "greedy words around", "around"


@built_in
class GreedyAnywhere(_Greedy):
    """Words anywhere, between those of the request too, found by greedy search."""

    name, where = "greedy words anywhere", "anywhere"
