"""The attack report as data: what `guardrail attack` writes, versioned.

Every share stands with its n and an exact 95 % interval. Scores are in text gaps. Thresholds of
readings are those that at most 1 or 5 % of the benign inputs exceed as they are, whatever is done
to inputs later; with pictures, as they are drawn, where none of them has any. `hit` is at the
artefact's own thresholds: flagged or steered.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, JsonValue

from guardrail.stats import Estimate, Frozen, SavedReport, Share

Standing = Literal["holds", "weakened", "defeated", "unknown"]
"""How a reading stands an attack, by what it finds beyond benign hits, at 5 % FPR."""
PLAIN = "as it is"
"""The row of inputs to which nothing is done."""


class ReadingFigures(Frozen):
    """One reading under one attack.

    `found` are the harmful inputs above its thresholds, `benign` the benign ones under the same
    transformation, by rate ("0.01", "0.05"). `before` are the same harmful inputs as they are, at
    5 %. `auroc` tells attacked harmful from transformed benign inputs.
    """

    found: dict[str, Share]
    benign: dict[str, Share]
    before: Share | None = None
    auroc: Estimate | None = None
    standing: Standing = "unknown"


class BudgetPoint(Frozen):
    """What is still hit when an attacker may ask so many questions."""

    questions: int
    hit: Share


class AttackRow(Frozen):
    """One attack. `aim` is the reading whose scores a search was told; "" where nothing was asked.

    `before` are the inputs that were hit as they are, `lost` those of them that no longer are.
    `fall` is how far an input's highest window fell at most, in text gaps. `complied` are inputs
    that the model answers without a guard, as attacked, and does not refuse; `through` those of
    them that the guard lets pass. `checked` and `checked_benign` are hit where
    a copy in plain letters is read, too: by `check`, and by `generate` under `fold_answers`.
    """

    name: str
    family: str
    about: str
    aim: str = ""
    n: int
    n_benign: int
    left_out: dict[str, int] = Field(default_factory=dict)
    hit: Share | None
    flagged: Share | None
    before: Share | None
    lost: Share | None
    benign_hit: Share | None
    checked: Share | None = None
    checked_benign: Share | None = None
    readings: dict[str, ReadingFigures]
    fall: float | None = None
    asked: float | None = None
    late: int = 0
    budgets: tuple[BudgetPoint, ...] = ()
    complied: Share | None = None
    through: Share | None = None
    example: str | None = None
    seconds: float

    @property
    def title(self) -> str:
        """Its name, with its aim where that is not the guard's own score."""
        return self.name if self.aim in ("", "joint") else f"{self.name} (told: {self.aim})"


class AttackReport(SavedReport):
    """A whole run; `rows` begin with the inputs as they are."""

    name: ClassVar[str] = "attack report"
    command: ClassVar[str] = "guardrail attack"

    schema_version: Literal[1] = 1
    created: str
    guardrail_version: str
    model: str
    artefact_id: str
    thresholds: dict[str, dict[str, float]]
    reading_thresholds: dict[str, dict[str, dict[str, float]]]
    n_harmful: int
    n_benign: int
    settings: dict[str, JsonValue]
    rows: tuple[AttackRow, ...]
    warnings: tuple[str, ...] = ()

    @property
    def attacks(self) -> tuple[AttackRow, ...]:
        """The rows of attacks alone."""
        return self.rows[1:]
