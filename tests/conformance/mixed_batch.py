"""A batch of which one row is flagged, one is steered and the rest pass, and what is right then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from guardrail.conformance import reference
from guardrail.conformance.reference import expect
from guardrail.conformance.subject import MOVE, TOKENS, rules, score_of
from guardrail.decide.detector import Detector
from guardrail.model.generate import generate_rows
from guardrail.model.settings import Settings
from guardrail.types import Action

if TYPE_CHECKING:
    from torch import Tensor

    from guardrail.artefact import Artefact
    from guardrail.conformance.checks import Figures
    from guardrail.conformance.subject import Subject
    from guardrail.model.generate import RowOutcome
    from guardrail.policy import Policy


@dataclass(frozen=True)
class MixedBatch:
    """The artefact and the policy, and by text: the action, the vector (d_model,) float64."""

    artefact: Artefact
    policy: Policy
    actions: list[Action]
    vectors: Tensor
    scores: list[float]

    def answers(self, subject: Subject, *, beams: int = 1) -> list[RowOutcome]:
        """The guard's answers to the texts."""
        return generate_rows(
            subject.loaded,
            subject.encode(subject.texts),
            Detector.from_artefact(self.artefact, self.policy),
            Settings(max_new_tokens=TOKENS, do_sample=False, num_beams=beams),
            policy=self.policy,
        )

    def expect(
        self,
        subject: Subject,
        answers: list[RowOutcome],
        plain: list[list[int]],
        slow: list[list[int]] | None,
    ) -> Figures:
        """Actions and scores are right, and so are all tokens.

        Rows that pass get the tokens of `plain`, flagged ones none, and the steered row those of
        the slow reference, if there is one.
        """
        rulings = [row.ruling for row in answers if row.ruling is not None]
        found = [ruling.action for ruling in rulings]
        expect(
            found == self.actions,
            f"the actions are {[str(a) for a in found]}, wanted {[str(a) for a in self.actions]}",
        )
        apart = [abs(score_of(r) - s) for r, s in zip(rulings, self.scores, strict=True)]
        bound = subject.tolerance(self.artefact, subject.texts)
        expect(
            max(apart) <= bound,
            f"a score is {max(apart):.2e} from the reference (bound {bound:.2e})",
        )
        for row, action in enumerate(self.actions):
            tokens = list(answers[row].token_ids)
            wanted = {Action.FLAG: [], Action.PASS: plain[row], Action.STEER: slow and slow[row]}
            expect(
                wanted[action] in (None, tokens),
                f"row {row} ({action}) gets {tokens}, wanted {wanted[action]}",
            )
        compared = "not compared: no cacheless reference" if slow is None else "equal"
        return {
            "rows": len(found),
            "new_tokens": TOKENS,
            "score_from_reference": max(apart),
            "steered_row": compared,
        }


def mixed_batch(subject: Subject, *, steer_tokens: int = 0) -> MixedBatch:
    """Thresholds between the highest score, the next and the others."""
    flat = subject.artefact(None, subject.steer)
    scores = subject.scores(flat, subject.texts)
    order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
    flag = (scores[order[0]] + scores[order[1]]) / 2
    gate = (scores[order[1]] + scores[order[2]]) / 2
    gain = MOVE / (scores[order[1]] - gate)
    artefact = subject.artefact(None, subject.steer, gain=gain, steer_tokens=steer_tokens)
    actions = [Action.PASS] * len(scores)
    actions[order[0]], actions[order[1]] = Action.FLAG, Action.STEER
    vectors = torch.zeros(len(scores), subject.loaded.d_model, dtype=torch.float64)
    vectors[order[1]] = reference.edit(artefact, scores[order[1]], gate)
    return MixedBatch(artefact, rules(steer=gate, flag=flag), actions, vectors, scores)
