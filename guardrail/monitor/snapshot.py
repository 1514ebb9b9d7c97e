"""A monitor's counts at one moment: a small JSON file, sums of several, and quantiles.

Quantiles come from a fixed grid of cells: bounded, exact to merge, with a known error.
"""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

from pydantic import AwareDatetime, Field, ValidationError, model_validator

from guardrail.artefact.file import write_atomically
from guardrail.errors import ConfigurationError, DatasetError
from guardrail.inputs.strict_json import strict_json
from guardrail.stats import Frozen
from guardrail.types import Action, Modality, Reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

WIDTH = 0.01  # text gaps
LAST = 1000  # cells run from -LAST to LAST - 1, that is from -10 to 10 text gaps
MAX_BYTES = 2_000_000
Count = Field(ge=0, le=2**53)  # a JSON number that every reader takes for the same


class ModalityCounts(Frozen):
    """Counts of one modality's scored requests, and of those the detector failed on.

    `actions` is what the thresholds in force asked for (`would_be`). `beyond_steer` and
    `beyond_flag` count scores above the thresholds of the artefact's own calibration, `counts`
    those in the bins between `edges`; all are 0 or empty where the artefact has no calibration.
    `cells` are pairs of a place on the fixed grid of `cell_of` and a count. `flagged_by` counts
    those that ask for a flag by the reading their score is from, where a verdict says `where`.
    """

    n: int = Count
    outages: int = Count
    actions: dict[Action, int]
    beyond_steer: int = Count
    beyond_flag: int = Count
    edges: tuple[float, ...] = Field(max_length=100)
    counts: tuple[int, ...] = Field(max_length=101)
    cells: tuple[tuple[int, int], ...] = Field(max_length=2 * LAST)
    lowest: float | None = None
    highest: float | None = None
    flagged_by: dict[Reading, int] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        places = [place for place, _ in self.cells]
        positive = all(count > 0 for _, count in self.cells)
        if places != sorted(set(places)) or not all(-LAST <= p < LAST for p in places):
            raise ValueError("cells must ascend within the grid")
        if not positive or min([0, *self.actions.values(), *self.counts]) < 0:
            raise ValueError("counts must not be negative")
        sums = [sum(self.actions.values()), sum(count for _, count in self.cells)]
        if self.counts or self.edges:
            sums.append(sum(self.counts))
        if any(total != self.n for total in sums):
            raise ValueError(f"n is {self.n}, but its parts add up to {sums}")
        if not self.beyond_flag <= self.beyond_steer <= self.n:
            raise ValueError("more scores lie beyond a threshold than there are below it")
        if (self.counts or self.edges) and len(self.counts) != len(self.edges) + 1:
            raise ValueError(f"{len(self.counts)} bins do not fit {len(self.edges)} edges")
        if list(self.edges) != sorted(set(self.edges)):
            raise ValueError("edges must ascend")
        if (self.lowest is None or self.highest is None) != (self.n == 0):
            raise ValueError("lowest and highest are those of the scores, and None without any")
        if self.lowest is not None and self.highest is not None and self.lowest > self.highest:
            raise ValueError("lowest is higher than highest")
        return self

    @model_validator(mode="after")
    def _no_more_than_flags(self) -> Self:
        found = self.flagged_by.values()
        if min([0, *found]) < 0 or sum(found) > self.actions.get(Action.FLAG, 0):
            raise ValueError("flags by reading must not be negative, nor more than there are flags")
        return self

    def quantile(self, share: float) -> float | None:
        """A quantile of the scores, None without any; see the function `quantile`.

        At most 0.005 text gaps off for scores between -10 and 10.
        """
        if self.lowest is None or self.highest is None:
            return None
        return quantile(self.cells, share, lowest=self.lowest, highest=self.highest)


class MonitorSnapshot(Frozen):
    """Counts of one artefact's verdicts in a stretch of time, by modality; nothing that was said.

    `outages` counts requests for which there was no decision at all, whose modality is not on
    record. `since` is the start of the counting, `until` the time of the snapshot (UTC); of a log,
    the times of its first and last line.
    """

    kind: Literal["guardrail.monitor"] = "guardrail.monitor"
    schema_version: Literal[1] = 1
    artefact_id: str
    bins: int = Field(ge=2, le=100)
    since: AwareDatetime | None
    until: AwareDatetime | None
    outages: int = Count
    modalities: dict[Modality, ModalityCounts]

    @property
    def n(self) -> int:
        """Scored requests of all modalities."""
        return sum(counts.n for counts in self.modalities.values())

    def to_dict(self) -> dict[str, object]:
        """Plain values, ready for JSON."""
        return self.model_dump(mode="json")

    def save(self, path: str | Path) -> Path:
        """Write the file in one step; a reader sees the old file or the new one."""
        path = Path(path).expanduser()
        try:
            write_atomically(path, (self.model_dump_json() + "\n").encode())
        except OSError as error:
            raise ConfigurationError(f"could not save {path}: {error}; nothing changed") from error
        return path

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a file.

        Raises:
            DatasetError: it is missing, too large, or no snapshot whose counts add up.
        """
        path = Path(path).expanduser()
        try:
            with path.open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        except OSError as error:
            raise DatasetError(f"{path} cannot be read: {error.strerror}") from error
        if len(data) > MAX_BYTES:
            raise DatasetError(f"{path} is larger than {MAX_BYTES} bytes, so it is no snapshot")
        return cls.parse(data, name=str(path))

    @classmethod
    def parse(cls, data: bytes, *, name: str = "the snapshot") -> Self:
        """The snapshot that a file's bytes are.

        Raises:
            DatasetError: they are no snapshot of a known version, or its counts do not add up.
        """
        try:
            strict_json(data.decode())  # refuses what readers take differently
            return cls.model_validate_json(data, strict=True)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "as a whole"
            raise DatasetError(f"{name} is no snapshot: {where}: {first['msg']}") from error
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{name} is no snapshot: {error}") from error

    @classmethod
    def merged(cls, snapshots: Iterable[MonitorSnapshot]) -> MonitorSnapshot:
        """The counts of several processes or windows together.

        Raises:
            ConfigurationError: there are none, they are of different artefacts or bins, or their
                counts are too large for a sum.
        """
        parts = list(snapshots)
        if not parts:
            raise ConfigurationError("there is no snapshot to merge; give one at least")
        for name in ("artefact_id", "bins"):
            if len(found := sorted({str(getattr(part, name)) for part in parts})) > 1:
                raise ConfigurationError(f"snapshots differ in {name}: {', '.join(found)}")
        starts = [part.since for part in parts if part.since is not None]
        ends = [part.until for part in parts if part.until is not None]
        modalities = dict.fromkeys(name for part in parts for name in part.modalities)
        try:
            return cls(
                artefact_id=parts[0].artefact_id,
                bins=parts[0].bins,
                since=min(starts, default=None),
                until=max(ends, default=None),
                outages=sum(part.outages for part in parts),
                modalities={
                    name: _sum([part.modalities[name] for part in parts if name in part.modalities])
                    for name in modalities
                },
            )
        except ValidationError as error:
            raise ConfigurationError(
                f"the snapshots cannot be added up: {error.errors()[0]['msg']}; one was edited"
            ) from error


def _sum(parts: Sequence[ModalityCounts]) -> ModalityCounts:
    """The counts of one modality together."""
    if len({part.edges for part in parts}) > 1:
        raise ConfigurationError("snapshots of one artefact differ in their bins; one was edited")
    actions: Counter[Action] = Counter()
    cells: Counter[int] = Counter()
    flagged_by: Counter[Reading] = Counter()
    for part in parts:
        actions.update(part.actions)
        flagged_by.update(part.flagged_by)
        cells.update(dict(part.cells))
    return ModalityCounts(
        n=sum(part.n for part in parts),
        outages=sum(part.outages for part in parts),
        actions=dict(actions),
        beyond_steer=sum(part.beyond_steer for part in parts),
        beyond_flag=sum(part.beyond_flag for part in parts),
        edges=parts[0].edges,
        counts=tuple(map(sum, zip(*(part.counts for part in parts), strict=True))),
        cells=tuple(sorted(cells.items())),
        lowest=min((part.lowest for part in parts if part.lowest is not None), default=None),
        highest=max((part.highest for part in parts if part.highest is not None), default=None),
        flagged_by=dict(flagged_by),
    )


def cell_of(score: float) -> int:
    """The cell of a finite score; scores beyond the grid are counted in its ends."""
    return max(-LAST, min(LAST - 1, math.floor(max(-1e9, min(1e9, score)) / WIDTH)))


def quantile(
    cells: Sequence[tuple[int, int]], share: float, *, lowest: float, highest: float
) -> float:
    """The smallest score that at least `share` of all scores do not exceed.

    Off by at most half a cell, 0.005 text gaps, for scores between -10 and 10; of scores outside
    only the lowest and highest are known, and stand for the others.

    Args:
        cells: pairs of a cell and its positive count, ascending.
        share: 0 to 1.
        lowest: the smallest score of all.
        highest: the largest score of all.
    """
    rank = max(1, math.ceil(share * sum(count for _, count in cells) - 1e-9))
    seen = 0
    for cell, count in cells:
        seen += count
        if seen >= rank:
            return _middle(cell, lowest, highest)
    raise ValueError("there is no quantile without scores")


def _middle(cell: int, lowest: float, highest: float) -> float:
    if cell == -LAST and lowest < -LAST * WIDTH:
        return lowest
    if cell == LAST - 1 and highest >= LAST * WIDTH:
        return highest
    return max(lowest, min(highest, (cell + 0.5) * WIDTH))
