"""The bins that scores are counted in."""

from __future__ import annotations

import numpy as np
import pytest

from guardrail.errors import ConfigurationError
from guardrail.monitor.reference import bin_edges, references
from guardrail.types import Modality


@pytest.mark.parametrize(("n", "bins"), [(1000, 10), (999, 10), (99, 7), (5, 3)])
def test_bins_hold_equal_shares_of_the_calibration(n, bins):
    scores = tuple(sorted(np.random.default_rng(n).normal(size=n).tolist()))
    edges = bin_edges(scores, bins)
    found = np.bincount(np.searchsorted(edges, scores, side="left"), minlength=bins)
    assert len(found) == bins
    assert found.max() - found.min() <= 1


def test_a_reference_counts_as_numpy_does(artefact):
    reference = references(artefact)[Modality.TEXT]
    scores = reference.calibration.scores
    expected = np.bincount(np.searchsorted(reference.edges, scores, side="left"), minlength=10)
    assert reference.counts() == tuple(expected)


@pytest.mark.parametrize(
    "scores", [(0.0,) * 150, (0.0,) * 140 + (1.0,) * 10, (0.0, *(1.0,) * 149), tuple(range(99))]
)
def test_ties_make_fewer_bins_and_never_an_empty_one(artefact_with, scores):
    artefact = artefact_with(text=scores)
    counts = references(artefact, 10)[Modality.TEXT].counts()
    assert min(counts) > 0
    assert sum(counts) == len(scores)


def test_a_modality_without_a_calibration_is_held_to_a_plainer_ones(artefact_with, artefact):
    only_text = references(artefact_with(text=range(99)))
    assert only_text[Modality.IMAGE].modality is Modality.TEXT
    assert references(artefact)[Modality.IMAGE].modality is Modality.IMAGE
    assert references(artefact.revised(calibration={})) == {}


@pytest.mark.parametrize("bins", [1, 101])
def test_no_number_of_bins_is_refused(artefact, bins):
    with pytest.raises(ConfigurationError, match="2 to 100"):
        references(artefact, bins)
