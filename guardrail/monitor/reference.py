"""What scores are held against: the bins and thresholds of one modality's calibration."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from typing import TYPE_CHECKING

from guardrail.errors import CalibrationError, ConfigurationError
from guardrail.types import Modality

if TYPE_CHECKING:
    from guardrail.artefact import Artefact
    from guardrail.artefact.header import Calibration

BINS = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A calibration, whose it is, and the edges of bins that hold equal shares of its scores.

    Edges ascend; bin i holds the scores from above edge i - 1 up to and with edge i, the last one
    those above all edges. Ties make fewer bins.
    """

    modality: Modality
    calibration: Calibration
    edges: tuple[float, ...]

    def bin_of(self, score: float) -> int:
        """The bin of a score, 0 to len(edges)."""
        return bisect_left(self.edges, score)

    def counts(self) -> tuple[int, ...]:
        """How many of the calibration's own scores each bin holds; none is empty."""
        found = [0] * (len(self.edges) + 1)
        for score in self.calibration.scores:
            found[self.bin_of(score)] += 1
        return tuple(found)


def references(artefact: Artefact, bins: int = BINS) -> dict[Modality, Reference]:
    """The reference of each modality; a modality without its own is held to a plainer one's.

    Raises:
        ConfigurationError: `bins` is no number of bins.
    """
    if not 2 <= bins <= 100:
        raise ConfigurationError(f"scores are counted in 2 to 100 bins; got {bins}")
    found = {}
    for modality in Modality:
        try:
            whose, calibration = artefact.calibration_for(modality)
        except CalibrationError:
            continue
        if not calibration.scores:
            continue
        edges = bin_edges(calibration.scores, bins)
        found[modality] = Reference(modality=whose, calibration=calibration, edges=edges)
    return found


def bin_edges(scores: tuple[float, ...], bins: int) -> tuple[float, ...]:
    """Inner edges of at most `bins` bins with equal shares of ascending scores, one at least."""
    places = (-(-len(scores) * i // bins) - 1 for i in range(1, bins))
    inner = {scores[place] for place in places if place >= 0}
    return tuple(sorted(inner - {scores[-1]}))  # the last bin is open, and must hold something
