"""What an attack is: a small class with a name and one method, inputs in and inputs out.

    class Shouted:
        name, family = "shouted", "mine"

        def __call__(self, inputs, scorer, budget, seed):
            return [with_said(request, f"{said(request)}!!!") for request in inputs]

It is found by its name, one's own as `package.module:Shouted`. An attack that `asks` the scorer is
given one input at a time, with a budget of its own; all others are given many at once. What an
attack cannot be done to is None in its place. The same inputs, seed and questions give the same
outputs; where the seconds end a search, they do not.
"""

from __future__ import annotations

import random
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

from guardrail.errors import ConfigurationError
from guardrail.fit.dataset import surroundings
from guardrail.inputs.messages import request_digest
from guardrail.types import Message, Request, TextPart

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from guardrail.attack.gradients import WhiteBox

_HOMES = ("rewriting", "placing", "searching", "gradients")
FAMILIES: Mapping[str, str] = {
    "encoding": "the request in other letters",
    "wrapper": "the request inside something else",
    "placing": "the request in other parts of a chat",
    "words": "ordinary words around the request, chosen by asking the guard",
    "gradients": "tokens and pixels chosen with the model's own weights",
}
_BUILT_IN: dict[str, type[Attack]] = {}


class Scorer(Protocol):
    """What an attacker may ask: scores of requests, higher is more harmful. Each is a question.

    A search may stop at a score of `goal`: there a request passes every threshold that is measured.
    `white` is what somebody has who holds the weights; None where there are none.
    """

    goal: float
    white: WhiteBox | None

    def __call__(self, requests: Sequence[Request]) -> list[float]:
        """The scores; infinite for what the model cannot be shown."""


@dataclass
class Budget:
    """Questions and seconds that one input may cost; the clock starts when the budget is made."""

    questions: int = 200
    seconds: float = 120.0
    asked: int = 0
    _began: float = field(default_factory=time.monotonic, repr=False)

    @property
    def late(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() - self._began > self.seconds

    @property
    def left(self) -> int:
        """Questions that may still be asked; none once the time is over."""
        return 0 if self.late else max(self.questions - self.asked, 0)

    def fresh(self) -> Budget:
        """The same limits, nothing spent."""
        return Budget(self.questions, self.seconds)


@runtime_checkable
class Attack(Protocol):
    """One way to ask the same thing. What it says of itself is the first line of its docstring."""

    name: str
    family: str

    def __call__(
        self, inputs: Sequence[Request], scorer: Scorer, budget: Budget, seed: int
    ) -> list[Request | None]:
        """The inputs as an attacker would send them; None for one that it cannot be done to."""


class OneByOne(ABC):
    """An attack that asks about each input by itself."""

    asks: bool = True

    def __call__(
        self, inputs: Sequence[Request], scorer: Scorer, budget: Budget, seed: int
    ) -> list[Request | None]:
        """See `Attack`."""
        return [self.one(request, scorer, budget, seed) for request in inputs]

    @abstractmethod
    def one(self, request: Request, scorer: Scorer, budget: Budget, seed: int) -> Request | None:
        """The input with what helped most, or as it is; None where it cannot be done."""


T = TypeVar("T", bound="type[Attack]")


def built_in(kind: T) -> T:
    """Have an attack found by its name."""
    _BUILT_IN[kind.name] = kind
    return kind


def known() -> dict[str, type[Attack]]:
    """The attacks that come with the package, by name, cheap families first."""
    for home in _HOMES:
        import_module(f"guardrail.attack.{home}")
    order = list(FAMILIES)
    return dict(sorted(_BUILT_IN.items(), key=lambda one: order.index(one[1].family)))


def find(name: str) -> Attack:
    """The attack of that name, or the one that `package.module:Class` names.

    Raises:
        ConfigurationError: there is none, or it is no attack.
    """
    module, colon, within = name.partition(":")
    if not colon:
        kinds = known()
        if name not in kinds:
            raise ConfigurationError(
                f"there is no attack {name!r}; known are {', '.join(kinds)}, and your own as "
                "package.module:Class"
            )
        return kinds[name]()
    try:
        found: object = getattr(import_module(module), within)
        made = found() if isinstance(found, type) else found
    except (ImportError, AttributeError, TypeError) as error:
        raise ConfigurationError(f"the attack {name!r} cannot be had: {error}") from error
    if not isinstance(made, Attack) or not callable(made):
        raise ConfigurationError(
            f"{name!r} is no attack: it has a `name`, a `family` and one method, "
            "`__call__(inputs, scorer, budget, seed)`"
        )
    return made


def asks(attack: Attack) -> bool:
    """Whether an attack asks the scorer, and so takes one input at a time."""
    return bool(getattr(attack, "asks", False))


def about(attack: Attack) -> str:
    """What an attack says of itself, in one line."""
    lines = (type(attack).__doc__ or attack.name).strip().splitlines()
    return lines[0] if lines else attack.name


def said(request: Request) -> str | None:
    """The words of the last message, if a user wrote it and it has any."""
    last = request.messages[-1]
    texts = [part.text for part in last.parts if isinstance(part, TextPart)]
    text = "\n".join(texts)
    return text if last.role == "user" and text.strip() else None


def with_said(request: Request, text: str) -> Request:
    """The same chat with other words in the last message, behind its pictures."""
    last = request.messages[-1]
    others = tuple(part for part in last.parts if not isinstance(part, TextPart))
    return replace(
        request,
        messages=(*request.messages[:-1], replace(last, parts=(*others, TextPart(text)))),
    )


def rewritten(
    inputs: Sequence[Request], change: Callable[[str, random.Random], str], seed: int
) -> list[Request | None]:
    """Each input with its words changed; what is drawn depends on the seed and the input alone."""
    found: list[Request | None] = []
    for request in inputs:
        text = said(request)
        made = None if text is None else change(text, drawing(seed, request))
        found.append(None if made is None else with_said(request, made))
    return found


def drawing(seed: int, request: Request, more: str = "") -> random.Random:
    """The random numbers of one input, whichever others are beside it."""
    return random.Random(f"{seed} {more} {request_digest(request)}")


def turn(role: str, text: str) -> Message:
    """A message of one text."""
    return Message(role=role, parts=(TextPart(text),))


def vocabulary() -> list[str]:
    """Ordinary English words: those of the packaged harmless sentences that no fit has read."""
    pool = surroundings("held out")
    return sorted({word for texts in pool.values() for text in texts for word in text.split()})
