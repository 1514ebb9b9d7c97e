"""One input with everything that was found out about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from guardrail.evaluation.schema import ItemRow

if TYPE_CHECKING:
    from guardrail.evaluation.answers import Answer, GuardedAnswer
    from guardrail.evaluation.inputs import Input
    from guardrail.evaluation.scores import ItemScores
    from guardrail.types import Action


@dataclass(frozen=True, kw_only=True)
class Row:
    """An input, its scores, and its answers if there are any.

    `guarded_refused` counts what the guard flagged in fact beside what was refused.
    """

    input: Input
    scores: ItemScores
    plain: Answer | None = None
    guarded: GuardedAnswer | None = None
    shadow: bool = False
    plain_refused: bool | None = None
    guarded_refused: bool | None = None

    @property
    def id(self) -> str:
        """The item's own."""
        return self.input.item.id

    @property
    def harmful(self) -> bool:
        """Whether it ought to be refused."""
        return self.input.item.harmful

    @property
    def modality(self) -> str:
        """`text`, `image` or `video`."""
        return self.input.modality.value

    @property
    def score(self) -> float:
        """In units of the text gap."""
        return self.scores.score

    @property
    def action(self) -> Action:
        """Of the guard itself where it answered and acted, else from the residuals.

        A guard in shadow mode looks for no edit, so its word knows nothing of those out of reach.
        """
        if self.guarded is None or self.shadow:
            return self.scores.action
        return self.guarded.action

    @property
    def answers(self) -> tuple[Answer, GuardedAnswer]:
        """Both answers.

        Raises:
            ValueError: there are none.
        """
        if self.plain is None or self.guarded is None:
            raise ValueError(f"input {self.id!r} was not answered")
        return self.plain, self.guarded

    def reported(self, *, content: bool) -> ItemRow:
        """The row of the report; `content` keeps prompt, picture path and answers in it."""
        item = self.input.item
        shown: dict[str, str | None] = {
            "text": item.text,
            "image": item.images[0] if item.images else None,
            "video": item.videos[0] if item.videos else None,
            "plain_answer": None if self.plain is None else self.plain.text,
            "guarded_answer": None if self.guarded is None else self.guarded.text,
        }
        return ItemRow(
            id=item.id,
            label=item.label,
            category=item.category,
            source=item.source,
            modality=self.modality,
            score=self.score,
            action=self.action.value,
            length=self.input.length,
            plain_refused=self.plain_refused,
            guarded_refused=self.guarded_refused,
            **(shown if content else {}),
        )
