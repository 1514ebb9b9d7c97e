"""What a run found, counted from what was written, and not from memory of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import Iterable

    from guardrail.bulk.parts import Parts

_READ = ("row", "action", "would_be", "modality", "reason", "error_type")


@dataclass(kw_only=True)
class Summary:
    """Counts over the rows of this run's parts; `of` is how many rows the source has.

    `actions` and `would_be` count by modality and action; `errors` by type. `unreadable` rows are
    at fault themselves, `failed` ones met an outage of the detector.
    """

    of: int
    complete: bool
    rows: int = 0
    scored: int = 0
    unreadable: int = 0
    failed: int = 0
    flagged: int = 0
    actions: dict[str, Counter[str]] = field(default_factory=dict)
    would_be: dict[str, Counter[str]] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, row: dict[str, object]) -> None:
        """One more row."""
        self.rows += 1
        match row["reason"]:
            case "unreadable":
                self.unreadable += 1
            case "failed" | "detector_failed":
                self.failed += 1
            case _:
                self.scored += 1
        if row["error_type"] is not None:
            self.errors[str(row["error_type"])] += 1
        elif row["reason"] == "detector_failed":
            self.errors["detector_failed"] += 1
        else:
            kind = str(row["modality"])
            self.actions.setdefault(kind, Counter())[str(row["action"])] += 1
            self.would_be.setdefault(kind, Counter())[str(row["would_be"])] += 1
            self.flagged += Action.FLAG in (row["action"], row["would_be"])

    def to_dict(self) -> dict[str, object]:
        """Plain values, sorted."""

        def plain(counts: dict[str, Counter[str]]) -> dict[str, dict[str, int]]:
            return {kind: dict(sorted(counts[kind].items())) for kind in sorted(counts)}

        return {
            "rows": self.rows,
            "of": self.of,
            "complete": self.complete,
            "scored": self.scored,
            "flagged": self.flagged,
            "unreadable": self.unreadable,
            "failed": self.failed,
            "actions": plain(self.actions),
            "would_be": plain(self.would_be),
            "errors": dict(sorted(self.errors.items())),
        }


def summarise(parts: Parts, numbers: Iterable[int]) -> Summary:
    """Count what parts hold; each must have exactly its rows.

    Raises:
        DatasetError: a part is damaged.
    """
    complete = all(parts.is_there(number) for number in range(parts.count))
    found = Summary(of=parts.rows, complete=complete)
    for number in numbers:
        for row in parts.read(number, _READ):
            found.add(row)
    return found
