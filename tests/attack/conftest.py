"""A tiny guard to attack, stand-ins for a detector, and a search that asks them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
import torch

from guardrail.attack.readings import Reader
from guardrail.evaluation.cache import Cache
from guardrail.guard import Guard
from guardrail.inputs.messages import to_request
from guardrail.policy import Policy
from guardrail.testing import tiny_artefact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from guardrail.artefact import Artefact
    from guardrail.attack.attacks import Budget
    from guardrail.types import Request


def request_of(text: str) -> Request:
    return to_request(text, policy=Policy())


@dataclass
class StandIn:
    """A detector that is a rule; it holds attacks to their budget as a run does."""

    rule: Callable[[Request], float]
    budget: Budget
    goal: float = 0.5
    white: Any = None
    seen: list[Request] = field(default_factory=list)

    def __call__(self, requests: Sequence[Request]) -> list[float]:
        assert len(requests) <= self.budget.left, "asked beyond the budget"
        self.budget.asked += len(requests)
        self.seen += requests
        return self.all_of(requests)

    def all_of(self, requests: Sequence[Request]) -> list[float]:
        return [self.rule(request) for request in requests]


@dataclass
class Told(StandIn):
    """What one reading of a real guard says, batch by batch."""

    reader: Reader | None = None
    by: str = "joint"

    def all_of(self, requests: Sequence[Request]) -> list[float]:
        assert self.reader is not None
        return [read.by[self.by] for read in self.reader(requests)]


def no_rule(_request: Request) -> float:
    raise AssertionError("this one is told by a reader")


@pytest.fixture(scope="module")
def guard(llava: Any) -> Iterator[Guard]:
    """At its thresholds some texts are steered, and others pass."""
    fitted = tiny_artefact(llava.model, llava.processor, tau_steer=0.5, tau_flag=1.0)
    with Guard((llava.model, llava.processor), fitted) as made:
        yield made


@pytest.fixture(scope="module")
def reader(guard: Guard) -> Reader:
    return Reader(guard, Cache())


@pytest.fixture(scope="module")
def blind(llava: Any) -> Iterator[Guard]:
    """Reads nothing: every request scores the same, whatever is done to it."""
    fitted = tiny_artefact(llava.model, llava.processor, tau_steer=-9, tau_flag=9)
    tensors = {
        name: torch.zeros_like(tensor) if name.startswith(("window_", "readout_weight")) else tensor
        for name, tensor in fitted.tensors.items()
    } | {"readout_zero": torch.zeros_like(fitted.tensors["readout_zero"])}
    lines = {
        kind: row.model_copy(update={"score": row.score.model_copy(update={"intercept": 0.0})})
        for kind, row in fitted.header.recentring.items()
    }
    changed = fitted.revised(tensors=tensors, recentring=lines)
    with Guard((llava.model, llava.processor), changed) as made:
        yield made


def without_windows(fitted: Artefact) -> Artefact:
    """The same artefact as a detector of old: it reads the ends of turns alone."""
    tensors = {n: t for n, t in fitted.tensors.items() if not n.startswith("window_")}
    return fitted.revised(tensors=tensors, windows=None)
