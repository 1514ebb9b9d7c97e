"""What the guard's figures are held against: chance, the words alone, the length alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from guardrail.evaluation.groups import aurocs_alike, modalities_of, sides_of
from guardrail.evaluation.matching import matched_pairs
from guardrail.evaluation.schema import (
    Controls,
    LengthMatched,
    LengthOnly,
    PermutedLabels,
    RandomDirections,
    TextBaseline,
)
from guardrail.stats import Estimate, auroc

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guardrail.evaluation.rows import Row

FEW = 5  # of each label: below it no control says anything
FEW_FOLDS = 10  # of each label, for a baseline that is trained
FOLDS = 5
DRAWS = 1000
TOLERANCE = 5  # characters
_AT_ONCE = 4_000_000  # shuffled ranks in memory


class TooFewError(ValueError):
    """A control that these inputs cannot support; the message says why."""


def controls(rows: Sequence[Row]) -> list[Controls]:
    """The controls of each modality that has both labels."""
    found = []
    for modality in modalities_of(rows):
        harmful, harmless = sides_of([row for row in rows if row.modality == modality])
        if harmful and harmless:
            found.append(_controls(modality, harmful, harmless))
    return found


def _controls(modality: str, harmful: Sequence[Row], harmless: Sequence[Row]) -> Controls:
    scores = [row.score for row in harmful], [row.score for row in harmless]
    texts = [row.input.item.text for row in harmful], [row.input.item.text for row in harmless]
    lengths = [row.input.length for row in harmful], [row.input.length for row in harmless]
    made: dict[str, Any] = {}
    skipped: dict[str, str] = {}
    attempts: dict[str, Callable[[], object]] = {
        "random_directions": lambda: random_directions(harmful, harmless),
        "permuted_labels": lambda: permuted_labels(*scores),
        "text_baseline": lambda: text_baseline(*texts),
        "length_only": lambda: length_only(*lengths),
        "length_matched": lambda: length_matched(*scores, *lengths),
    }
    for name, attempt in attempts.items():
        try:
            made[name] = attempt()
        except TooFewError as error:
            skipped[name] = str(error)
    return Controls(
        modality=modality,
        n_harmful=len(harmful),
        n_harmless=len(harmless),
        guard=Estimate.of_auroc(*scores),
        skipped=skipped,
        **made,
    )


def random_directions(harmful: Sequence[Row], harmless: Sequence[Row]) -> RandomDirections:
    """AUROC of every random direction that was read beside the readout.

    Such a direction has no offsets: inputs of one picture are compared with each other alone, and
    so are inputs of several.
    """
    _require(FEW, harmful, harmless)
    each = aurocs_alike(harmful, harmless, lambda row: row.scores.random)
    found = [one for one in each if one is not None]
    if len(found) < len(each):
        raise TooFewError("all of one label have one picture and all of the other several")
    return RandomDirections(
        aurocs=tuple(found), mean=float(np.mean(found)), sd=float(np.std(found, ddof=1))
    )


def permuted_labels(
    harmful: Sequence[float], harmless: Sequence[float], *, draws: int = DRAWS, seed: int = 0
) -> PermutedLabels:
    """A permutation test of the AUROC: scores stay, labels are shuffled.

    One-sided, with the observed order counted as a draw: p = (1 + #{>= observed}) / (1 + draws)
    (Phipson and Smyth 2010, section 4).
    """
    from scipy.stats import rankdata

    _require(FEW, harmful, harmless)
    rng = np.random.default_rng(seed)
    ranks, m = rankdata([*harmful, *harmless]), len(harmful)
    at_once = max(1, _AT_ONCE // len(ranks))
    sums = []
    for start in range(0, draws, at_once):
        shuffled = np.tile(ranks, (min(at_once, draws - start), 1))
        sums.append(rng.permuted(shuffled, axis=1)[:, :m].sum(axis=1))
    aurocs = (np.concatenate(sums) - m * (m + 1) / 2) / (m * len(harmless))
    reached = int((aurocs >= auroc(harmful, harmless) - 1e-12).sum())
    return PermutedLabels(
        draws=draws,
        mean=float(aurocs.mean()),
        sd=float(aurocs.std(ddof=1)),
        highest=float(aurocs.max()),
        p_value=(1 + reached) / (1 + draws),
    )


def text_baseline(
    harmful: Sequence[str], harmless: Sequence[str], *, seed: int = 0
) -> TextBaseline:
    """Words and pairs of words (TF-IDF), logistic regression, each input scored out of fold."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    _require(FEW_FOLDS, harmful, harmless)
    vectors = TfidfVectorizer(
        ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"(?u)\b\w+\b", max_features=200_000
    )
    model = make_pipeline(vectors, LogisticRegression(class_weight="balanced", max_iter=2000))
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    words, labels = [*harmful, *harmless], [1] * len(harmful) + [0] * len(harmless)
    try:
        scores = cross_val_predict(model, words, labels, cv=folds, method="decision_function")
    except ValueError as error:
        if "empty vocabulary" not in str(error):
            raise
        raise TooFewError("the inputs hold no words") from error
    found = Estimate.of_auroc(scores[: len(harmful)].tolist(), scores[len(harmful) :].tolist())
    return TextBaseline(auroc=found, folds=FOLDS)


def length_only(harmful: Sequence[int], harmless: Sequence[int]) -> LengthOnly:
    """The number of characters as the score."""
    _require(FEW, harmful, harmless)
    found = Estimate.of_auroc(harmful, harmless)
    return LengthOnly(auroc=found, either_way=max(found.value, 1 - found.value))


def length_matched(
    harmful: Sequence[float],
    harmless: Sequence[float],
    harmful_lengths: Sequence[int],
    harmless_lengths: Sequence[int],
    *,
    tolerance: int = TOLERANCE,
) -> LengthMatched:
    """The guard's AUROC over inputs that have a partner of the other label and equal length."""
    pairs = matched_pairs(harmful_lengths, harmless_lengths, tolerance)
    if len(pairs) < FEW:
        raise TooFewError(
            f"{len(pairs)} pairs of a harmful and a harmless input within {tolerance} characters; "
            f"at least {FEW} are needed"
        )
    mine, theirs = (list(places) for places in zip(*pairs, strict=True))
    return LengthMatched(
        pairs=len(pairs),
        tolerance=tolerance,
        auroc=Estimate.of_auroc([harmful[i] for i in mine], [harmless[j] for j in theirs]),
        length_auroc=auroc(
            [harmful_lengths[i] for i in mine], [harmless_lengths[j] for j in theirs]
        ),
    )


def _require(least: int, harmful: Sequence[object], harmless: Sequence[object]) -> None:
    if min(len(harmful), len(harmless)) < least:
        raise TooFewError(
            f"{len(harmful)} harmful and {len(harmless)} harmless inputs; at least {least} of each "
            "are needed"
        )
