"""What every adapter and every route of the server owes: no word reaches a model unjudged.

A channel is a way by which words or pictures reach a model. Each is tried with one word planted in
it, by the code that an app would run, and its outcome is what the test proves:

- judged: a guard that flags the word keeps it from the model, one that does not lets it through;
- refused: an error names what cannot be read, and the model is not asked;
- never: the whole runs through, and the model is not shown the word.

The table of all this stands in integrations/README.md. What a library can put into a message is
asked of the library itself (`fields_of`): a field that it adds in a later version turns a test red.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel

from guardrail.errors import GuardrailViolation, InputError
from guardrail.testing import FakeGuard

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

WORD = "zqxword"
OTHER = "anotherword"

Outcome = Literal["judged", "refused", "never"]
Kind = Literal[
    "system prompt",
    "instructions",
    "user's message",
    "tool name",
    "tool description",
    "tool namespace",
    "schema strings",
    "tool call",
    "tool result",
    "history",
    "retrieved text",
    "resource",
    "prompt template",
    "metadata",
    "form of the answer",
    "notification",
    "settings",
    "picture",
]
KINDS: tuple[Kind, ...] = typing.get_args(Kind)


class Withheld(Exception):
    """The guard stopped it, in whatever way the adapter does."""


class Refused(Exception):
    """Somebody was told what cannot be read."""


@dataclass(frozen=True, kw_only=True)
class Channel:
    """One way by which a word reaches a model.

    `run` takes a guard and the word, does what an app does, and gives the `repr` of all that the
    model behind the guard was sent (for a proxy: of what its client got). It may raise `Withheld`,
    `Refused` or what the product raises.
    """

    adapter: str
    kind: Kind
    name: str
    run: Callable[[FakeGuard, str], Awaitable[str]]
    outcome: Outcome = "judged"

    def __str__(self) -> str:
        return f"{self.adapter}: {self.name}"


async def prove(channel: Channel) -> None:
    """Show that the channel's outcome is what it says."""
    if channel.outcome == "refused":
        try:
            seen = await channel.run(FakeGuard([OTHER]), WORD)
        except (Refused, InputError):
            return
        raise AssertionError(f"nothing was refused; the model got {seen[:500]}")
    if channel.outcome == "never":
        seen = await channel.run(FakeGuard([OTHER]), WORD)
        assert WORD not in seen
        return
    open_, closed = FakeGuard([OTHER]), FakeGuard([WORD])
    assert WORD in await channel.run(open_, WORD), "it does not reach the model at all"
    assert WORD in repr(open_.seen), "the guard did not read it"
    try:
        seen = await channel.run(closed, WORD)
    except (Withheld, GuardrailViolation):
        seen = ""
    assert WORD not in seen
    assert WORD in repr(closed.seen)


def fields_of(kind: Any) -> set[str]:
    """What a library's class can hold: a dataclass, a pydantic model or a `TypedDict`."""
    if dataclasses.is_dataclass(kind):
        return {each.name for each in dataclasses.fields(kind)}
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return set(kind.model_fields)
    return set(typing.get_type_hints(kind))


@dataclass(frozen=True, kw_only=True)
class LibraryClass:
    """A class of a library, and what becomes of each of its fields.

    `judged`, `refused` and `never` name the fields with that outcome; `labels` those that are
    judged unless they hold a label. All of them together are all that the class has. In an older
    version than the newest some may be missing.
    """

    kind: Any
    judged: str = ""
    refused: str = ""
    never: str = ""
    labels: str = ""

    def __str__(self) -> str:
        return f"{self.kind.__module__}.{self.kind.__qualname__}"

    @property
    def known(self) -> set[str]:
        """All fields that somebody has looked at."""
        return {*f"{self.judged} {self.refused} {self.never} {self.labels}".split()}

    def unknown(self) -> set[str]:
        """Those that the library has and nobody has looked at."""
        return fields_of(self.kind) - self.known
