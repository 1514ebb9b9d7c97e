"""Turn CTC log-probabilities into words: prefix beam search helped by a lexicon.

Words of the lexicon are preferred, frequent ones more than rare ones; other strings (names,
numbers) are possible at a cost for each letter, so a clearly read unknown word survives and a
doubtful one becomes the nearest known word.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

ALPHABET = " abcdefghijklmnopqrstuvwxyz0123456789.,?!'-:"  # class 0 is the CTC blank
SPACE = ALPHABET.index(" ") + 1  # its class
SHORT = frozenset(
    "a ai am an as at be by do go he i if in is it me my no of oh ok on or so to us up we"
    " tv uk".split()
)
SUFFIXES = ("s", "es", "ed", "d", "ing", "ly", "er", "al")


def lexicon(vocabulary: dict[str, int]) -> list[str]:
    """Words of a byte-level BPE vocabulary, most frequent first, then their regular forms."""
    ranked = sorted(vocabulary, key=vocabulary.__getitem__)
    tokens = [token[1:].lower() for token in ranked if token[0] == "\u0120"]
    words = [w for w in tokens if w.isascii() and w.isalpha() and (len(w) > 2 or w in SHORT)]
    forms = [w + suffix for w in words if len(w) > 3 for suffix in SUFFIXES]
    forms += [w[:-1] + "ing" for w in words if len(w) > 3 and w.endswith("e")]
    return list(dict.fromkeys(words + forms))


@dataclass(slots=True)
class Node:
    """A place in the trie of known words."""

    next: dict[str, "Node"] = field(default_factory=dict)
    word: float | None = None  # prior of the word that ends here
    best: float = -math.inf  # best prior of the words that go through here


@dataclass(frozen=True, slots=True)
class Prior:
    """What the lexicon thinks of a prefix: its finished words, and its unfinished word's place."""

    done: float
    node: Node | None
    open: int  # letters of the unfinished word

    def value(self, unknown: float, letter: float) -> float:
        """The prior of the whole prefix, the best end of its unfinished word foreseen."""
        if not self.open:
            return self.done
        return self.done + (self.node.best if self.node else unknown + letter * self.open)


class CTCDecoder:
    """Prefix beam search over `ALPHABET` with a lexicon given as words, most frequent first."""

    def __init__(
        self,
        words: Iterable[str],
        beam: int = 12,
        rank_weight: float = 0.25,
        word_bonus: float = 2.5,
        unknown: float = -2.0,
        letter: float = -0.2,
        min_log_prob: float = -4.5,
    ) -> None:
        self.beam, self.min_log_prob = beam, min_log_prob
        self.unknown, self.letter = unknown, letter
        self.root = Node()
        for rank, word in enumerate(words):
            prior = word_bonus - rank_weight * math.log(rank + 10)
            node = self.root
            for char in word:
                node = node.next.setdefault(char, Node())
                node.best = max(node.best, prior)
            node.word = prior if node.word is None else max(node.word, prior)

    def _extend(self, prior: Prior, char: str) -> Prior:
        """The prior of a prefix with one more character."""
        if char.isalpha():
            node = prior.node.next.get(char) if prior.node else None
            return Prior(prior.done, node, prior.open + 1)
        if not prior.open:
            return prior
        known = prior.node is not None and prior.node.word is not None
        word = prior.node.word if known else self.unknown + self.letter * prior.open
        return Prior(prior.done + word, self.root, 0)

    def __call__(self, log_probs: Tensor) -> tuple[str, float]:
        """Best text and its score, (frames, classes) -> (text, score)."""
        blank = log_probs[:, 0] > -0.01  # of a run of sure blanks one is enough
        keep = ~blank | torch.cat([blank.new_zeros(1), ~blank[:-1]])
        frames = log_probs[keep].double().tolist()
        beams = {"": (0.0, -math.inf)}  # log p ending in a blank, in a character
        priors = {"": Prior(0.0, self.root, 0)}
        for frame in frames:
            beams = self._step(beams, priors, frame)

        def total(text: str) -> float:
            return _add(*beams[text]) + self._extend(priors[text], " ").done

        text = max(beams, key=total)
        return " ".join(text.split()), total(text)

    def _step(
        self, beams: dict[str, tuple[float, float]], priors: dict[str, Prior], frame: list[float]
    ) -> dict[str, tuple[float, float]]:
        """One frame: every prefix stays as it is or grows by a character."""
        grown: dict[str, tuple[float, float]] = {}
        likely = [(c, p) for c, p in enumerate(frame) if c and p > self.min_log_prob]

        def put(text: str, blank: float, char: float) -> None:
            old = grown.get(text, (-math.inf, -math.inf))
            grown[text] = (_add(old[0], blank), _add(old[1], char))

        for text, (blank, char) in beams.items():
            both = _add(blank, char)
            if text.endswith(" ") or not text:  # a further space says as little as a blank
                put(text, both + _add(frame[0], frame[SPACE]), -math.inf)
            else:
                put(text, both + frame[0], char + frame[ALPHABET.index(text[-1]) + 1])
            for c, p in likely:
                letter = ALPHABET[c - 1]
                if letter == " " and (not text or text[-1] == " "):
                    continue  # counted above
                longer = text + letter
                if longer not in priors:
                    priors[longer] = self._extend(priors[text], letter)
                put(longer, -math.inf, (blank if text and text[-1] == letter else both) + p)
        rank = {
            text: _add(*both) + priors[text].value(self.unknown, self.letter)
            for text, both in grown.items()
        }
        kept = sorted(rank, key=rank.__getitem__, reverse=True)[: self.beam]
        return {text: grown[text] for text in kept}


def _add(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    if a < b:
        a, b = b, a
    return a if b == -math.inf else a + math.log1p(math.exp(b - a))


def confidence(log_probs: Tensor) -> float:
    """Mean probability of the greedy path's characters, lower for very few of them."""
    best, label = log_probs.max(-1)
    read = best[label > 0]
    return float(read.exp().sum()) / (len(read) + 1.5)
