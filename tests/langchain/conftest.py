"""Guards on tiny models, as chat models; nothing here reaches a network."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import pytest
from guardrail_langchain import ChatGuardedVLM

from guardrail import Guard, Policy, Thresholds
from guardrail.testing import tiny_artefact, tiny_model
from guardrail.types import Action, Modality

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

FAR = 1e9
FORCED = {
    Action.PASS: Thresholds(steer=FAR, flag=FAR),
    Action.STEER: Thresholds(steer=-FAR, flag=FAR),
    Action.FLAG: Thresholds(steer=-FAR, flag=-FAR),
}


@functools.cache
def parts() -> tuple[Any, Any, Any]:
    """A model of these tests' own (a script may run on it), its processor, its artefact."""
    model, processor = tiny_model("llava")
    return model, processor, tiny_artefact(model, processor)


def make_guard(action: Action = Action.PASS, **policy: Any) -> Guard:
    model, processor, artefact = parts()
    both = dict.fromkeys((Modality.TEXT, Modality.IMAGE), FORCED[action])
    return Guard((model, processor), artefact, policy=Policy(thresholds=both, **policy))


@pytest.fixture(scope="session")
def tiny_parts() -> tuple[Any, Any, Any]:
    return parts()


@pytest.fixture
def guard_for() -> Iterator[Callable[..., Guard]]:
    """`guard_for(Action.FLAG, on_flag="raise")`; closed after the test."""
    guards: list[Guard] = []

    def make(action: Action = Action.PASS, **policy: Any) -> Guard:
        guards.append(make_guard(action, **policy))
        return guards[-1]

    yield make
    for guard in guards:
        guard.close()


@pytest.fixture
def chat_for(guard_for: Callable[..., Guard]) -> Callable[..., ChatGuardedVLM]:
    """`chat_for(Action.FLAG, max_tokens=4)`: a chat model whose guard is forced to act."""

    def make(action: Action = Action.PASS, policy: Any = None, **fields: Any) -> ChatGuardedVLM:
        fields = {"max_tokens": 6, "temperature": 0} | fields
        return ChatGuardedVLM(guard=guard_for(action, **(policy or {})), **fields)

    return make
