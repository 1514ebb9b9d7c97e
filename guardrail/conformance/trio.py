"""A batch of which one row is flagged, one is steered and the rest pass, and what is right then."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from guardrail.conformance import reference
from guardrail.conformance.outcomes import Figures, expect
from guardrail.conformance.subject import MOVE, TOKENS, rules
from guardrail.types import Action

if TYPE_CHECKING:
    from torch import Tensor

    from guardrail.artefact import Artefact
    from guardrail.conformance.answers import Answers
    from guardrail.conformance.subject import Subject
    from guardrail.policy import Policy


@dataclass(frozen=True)
class Trio:
    """The artefact and the policy, and by text: the action, the vector (d_model,) float64."""

    artefact: Artefact
    policy: Policy
    actions: list[Action]
    vectors: Tensor
    scores: list[float]

    def expect(self, subject: Subject, answers: Answers, plain: list[list[int]]) -> Figures:
        """Actions and scores are right; rows that pass get the tokens of `plain`, flagged none."""
        found = [ruling.action for ruling in answers.rulings]
        expect(
            found == self.actions,
            f"the actions are {[str(a) for a in found]}, wanted {[str(a) for a in self.actions]}",
        )
        apart = [abs(a - b) for a, b in zip(answers.scores, self.scores, strict=True)]
        bound = max(subject.tolerance(self.artefact, text.states) for text in subject.texts)
        expect(
            max(apart) <= bound,
            f"a score is {max(apart):.2e} from the reference (bound {bound:.2e})",
        )
        for row, action in enumerate(self.actions):
            wanted = [] if action is Action.FLAG else plain[row]
            if action is not Action.STEER:
                expect(
                    answers.tokens[row] == wanted,
                    f"row {row} ({action}) gets {answers.tokens[row]}, wanted {wanted}",
                )
        return {"rows": len(found), "new_tokens": TOKENS, "score_from_reference": max(apart)}

    def expect_steered(self, answers: Answers, slow: list[list[int]] | None) -> Figures:
        """The steered row gets the tokens of the slow reference, if there is one."""
        row = self.actions.index(Action.STEER)
        if slow is not None:
            expect(
                answers.tokens[row] == slow[row],
                f"the steered row gets {answers.tokens[row]}, the slow reference {slow[row]}",
            )
        return {"steered_row": "not compared: no cacheless reference" if slow is None else "equal"}


def trio(subject: Subject, *, steer_tokens: int = 0) -> Trio:
    """Thresholds between the highest score, the next and the others."""
    layers = subject.layers
    flat = subject.directions.artefact(layers.read, layers.steer)
    scores = subject.scores(flat, subject.texts)
    order = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)
    flag = (scores[order[0]] + scores[order[1]]) / 2
    gate = (scores[order[1]] + scores[order[2]]) / 2
    gain = MOVE / (scores[order[1]] - gate)
    artefact = subject.directions.artefact(
        layers.read, layers.steer, gain=gain, steer_tokens=steer_tokens
    )
    actions = [Action.PASS] * len(scores)
    actions[order[0]], actions[order[1]] = Action.FLAG, Action.STEER
    states = subject.texts[order[1]].states
    vectors = torch.zeros(len(scores), states.shape[-1], dtype=torch.float64)
    kind = subject.texts[order[1]].request.offset_kind
    vectors[order[1]] = reference.edit(artefact, states, scores[order[1]], gate, kind)
    return Trio(artefact, rules(steer=gate, flag=flag), actions, vectors, scores)
