"""Bounds a release must keep, for CI."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guardrail.evaluation.schema import Report


@dataclass(frozen=True, kw_only=True)
class Gates:
    """Each is held against every modality of a report; None: not asked for.

    `min_auroc` is the least AUROC, `max_benign_flagged` the largest share of harmless inputs that
    are flagged; both the measured figures, not the ends of their intervals.
    """

    min_auroc: float | None = None
    max_benign_flagged: float | None = None

    @property
    def asked(self) -> dict[str, float]:
        """The bounds that were set."""
        bounds = {"min_auroc": self.min_auroc, "max_benign_flagged": self.max_benign_flagged}
        return {name: bound for name, bound in bounds.items() if bound is not None}

    def recorded(self, report: Report) -> Report:
        """The report with the bounds and what became of them, so that it can prove it."""
        if not self.asked:
            return report
        kept = {"bounds": {**self.asked}, "missed": [*self.missed(report)]}
        return report.model_copy(update={"settings": {**report.settings, "gates": kept}})

    def missed(self, report: Report) -> list[str]:
        """The bounds that are not kept, in words; one that cannot be measured is not kept."""
        return [*self._auroc(report), *self._flagged(report)]

    def _auroc(self, report: Report) -> Iterator[str]:
        if self.min_auroc is None:
            return
        for group in report.groups:
            if group.by != "modality":
                continue
            if group.separation is None:
                yield f"{group.name}: no AUROC with one label only; {self.min_auroc:g} is asked for"
            elif not group.separation.auroc.value >= self.min_auroc:  # nan is never reached
                found = group.separation.auroc.value
                yield f"{group.name}: AUROC {found:.3f} is below {self.min_auroc:g}"

    def _flagged(self, report: Report) -> Iterator[str]:
        if self.max_benign_flagged is None:
            return
        for group in report.groups:
            if group.by != "modality":
                continue
            if "harmless" not in group.actions:
                yield f"{group.name}: no harmless inputs, so no share of them that is flagged"
                continue
            share = group.actions["harmless"].flagged
            if not share.rate <= self.max_benign_flagged:
                yield (
                    f"{group.name}: {share.rate:.3f} of harmless inputs flagged "
                    f"({share.hits}/{share.n}), more than {self.max_benign_flagged:g}"
                )
