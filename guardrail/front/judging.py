"""One verdict on all that another model is about to read.

What is said (the chat) and what comes beside it (system prompts, tools, schemas, settings with
words) are judged apart, and the higher verdict counts: a long system prompt, benign or not, would
otherwise drown what a user asks, and a word planted in one tool would drown among twenty. What
comes beside it is judged piece by piece, each as something a user says, which scores are calibrated
on, and once for as long as it stays the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeVar

from pydantic import BaseModel

from guardrail.errors import GuardrailError, UnsupportedContentError
from guardrail.front.chats import UNSAID, result_chat
from guardrail.front.consequences import severity
from guardrail.front.wrap import LAST
from guardrail.inputs.labels import is_label, is_unspoken, shown_labels
from guardrail.inputs.threads import read_apart
from guardrail.policy.acting import passes_unchecked

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Sequence

    from guardrail.front.consequences import Checker, Reaction, Settled
    from guardrail.policy import Policy
    from guardrail.types import Verdict

Chat = list[dict[str, Any]]

_log = logging.getLogger(__name__)
_MOST_KEPT = 1024  # verdicts on what comes beside chats, a few hundred bytes each
SYSTEM_ROLES = frozenset({"system", "developer"})
_LABELS = frozenset({"id"})


@dataclass(frozen=True, slots=True)
class Heard:
    """What a model is about to read, as a guard reads it: what is said, and what comes beside."""

    said: Chat
    beside: Sequence[Chat]

    @classmethod
    def of(cls, chat: Chat, words: Iterable[str] = ()) -> Self:
        """A chat in the form that guards take, and texts that come beside it.

        Its system prompts, and names and ids that hold more than that, come beside it, too.
        """
        said = [turn for turn in chat if turn["role"] not in SYSTEM_ROLES]
        system = [turn["content"] for turn in chat if turn["role"] in SYSTEM_ROLES]
        beside = [*filter(None, system), *shown_labels(chat, ()), *words]
        return cls(said, [result_chat(content) for content in beside])


class Call(Protocol):
    """What goes to a model, and how a guard hears it."""

    @property
    def heard(self) -> Heard | None:
        """As a guard hears it; None where there is nothing to judge."""


C = TypeVar("C", bound=Call)


@dataclass(frozen=True, slots=True)
class Judge:
    """A guard and its rules, with the verdicts on what comes beside chats."""

    reaction: Reaction
    _kept: OrderedDict[str, Verdict] = field(default_factory=OrderedDict)
    _ahead: OrderedDict[str, Verdict] = field(default_factory=OrderedDict)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself: copies of a model share their guard and its verdicts."""
        return self

    def verdict(self, heard: Heard) -> Verdict:
        """The highest verdict on what is said and on all that comes beside it."""
        LAST.set(None)  # a check that raises must not leave the verdict before it standing
        return self._highest([self._judged(chat, keep) for chat, keep in _chats(heard)])

    async def averdict(self, heard: Heard) -> Verdict:
        """`verdict` without blocking the event loop."""
        LAST.set(None)
        limits = self.guard.policy.limits
        places = asyncio.Semaphore(min(2 * limits.batch, limits.queue))  # others wait there, too

        async def judged(chat: Chat, keep: bool) -> Verdict:
            async with places:
                return await self._ajudged(chat, keep)

        return self._highest(
            await asyncio.gather(*(judged(chat, keep) for chat, keep in _chats(heard)))
        )

    async def aruled(self, read: Callable[[], C]) -> tuple[C | None, Verdict | None]:
        """A call, read in a thread, and its verdict, if there is anything to judge.

        No call: it goes on as it is, since the rules let pass what could not be checked. In shadow
        mode nothing is stopped, not even what no guard can read.

        Raises:
            GuardrailError: it cannot be read or judged, or there is no room or time for it.
        """
        try:
            call = await read_apart(read)
            return call, None if call.heard is None else await self.averdict(call.heard)
        except GuardrailError as error:
            if not passes_unchecked(error, self.guard.policy):
                raise
            _log.warning("a call goes on that could not be checked: %s", error)
            return None, None

    def remember(self, heard: Heard, verdict: Verdict) -> None:
        """Keep a verdict for the next call that says the same, which then is not judged again."""
        _put(self._ahead, _digest(heard.said), verdict)

    def settle(
        self, verdict: Verdict, caution: Callable[[str], Any | None] = lambda words: None
    ) -> Settled:
        """What becomes of the call; see `Reaction.settle`."""
        after = self.reaction.settle(verdict, caution)
        LAST.set(after.verdict)
        return after

    @property
    def guard(self) -> Checker:
        """The guard that judges."""
        return self.reaction.guard

    def _judged(self, chat: Chat, keep: bool) -> Verdict:
        key, found = self._known(chat, keep)
        return found if found is not None else self._keep(key, self.guard.check(chat))

    async def _ajudged(self, chat: Chat, keep: bool) -> Verdict:
        key, found = self._known(chat, keep)
        return found if found is not None else self._keep(key, await self.guard.acheck(chat))

    def _known(self, chat: Chat, keep: bool) -> tuple[str, Verdict | None]:
        """The key under which a verdict is to be kept, and the one that is there."""
        if keep:
            return (key := _digest(chat)), self._kept.get(key)
        return "", self._ahead.pop(_digest(chat), None) if self._ahead else None

    def _keep(self, key: str, verdict: Verdict) -> Verdict:
        if key and verdict.reason == "score":  # an outage is over some time
            _put(self._kept, key, verdict)
        return verdict

    def _highest(self, verdicts: Sequence[Verdict]) -> Verdict:
        def weight(verdict: Verdict) -> tuple[bool, int, int, float]:
            score = float("inf") if verdict.score is None else verdict.score
            return *severity(verdict, self.guard.policy), score

        return max(verdicts, key=weight)


async def answer_verdict(
    check: Callable[[str, str], Awaitable[Verdict]], text: str, policy: Policy
) -> Verdict | None:
    """The verdict on an answer, whoever gave it to whatever; None where there is nothing to judge.

    Nor is there one where the rules let pass what could not be checked, which is logged.

    Args:
        check: a guard's `acheck_answer`.
        text: the answer.
        policy: the guard's rules, which have answers watched.

    Raises:
        GuardrailError: it cannot be judged, or there is no room or time for it.
    """
    if not text.strip():
        return None
    try:
        return await check(UNSAID, text)
    except GuardrailError as error:
        if not passes_unchecked(error, policy):
            raise
        _log.warning("an answer goes on that could not be checked: %s", type(error).__name__)
        return None


def words_of(value: Any, shown: Callable[[Any], Any] = lambda value: value) -> str:
    """What stands in a value, as the JSON that a provider may show its model; "" for no words.

    Args:
        value: JSON values, pydantic models and their classes, enums, at any depth.
        shown: what a framework shows of its own objects; others it gives back as they are.

    Raises:
        UnsupportedContentError: something that cannot be written so.
    """
    plain = _plain(value, shown)
    return json.dumps(plain, ensure_ascii=False) if _says_something(plain) else ""


def _chats(heard: Heard) -> list[tuple[Chat, bool]]:
    """What is judged, and whether its verdict is kept."""
    chats = [(chat, True) for chat in heard.beside]
    # A chat of nothing at all is for the guard to refuse.
    return [(heard.said, False), *chats] if heard.said or not chats else chats


def _put(kept: OrderedDict[str, Verdict], key: str, verdict: Verdict) -> None:
    kept[key] = verdict
    if len(kept) > _MOST_KEPT:
        kept.popitem(last=False)


def _digest(chat: Chat) -> str:
    text = json.dumps(chat, sort_keys=True, default=lambda value: value.hex())  # bytes of pictures
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: Any, shown: Callable[[Any], Any]) -> Any:
    """JSON values, without what is a label or a cipher."""
    match shown(value):
        case None | bool() | int() | float() | str() as plain:
            return plain
        case Mapping() as named:
            # In a schema the same names stand for properties, with words of their own.
            spoken = {k: v for k, v in named.items() if not is_unspoken(k, v, _LABELS)}
            return {str(k): _plain(v, shown) for k, v in spoken.items()}
        case list() | tuple() | set() | frozenset() as items:
            return [_plain(item, shown) for item in items]
        case BaseModel() as model:
            return _plain(model.model_dump(exclude_none=True), shown)
        case Enum() as member:
            return _plain(member.value, shown)
        case type() as kind if issubclass(kind, BaseModel):
            return _plain(kind.model_json_schema(), shown)
    raise UnsupportedContentError(
        f"a {type(value).__name__} goes to the model, which a guard cannot read; send text, JSON "
        "values, tools or pydantic models"
    )


def _says_something(plain: Any) -> bool:
    if isinstance(plain, dict):
        return any(not is_label(key) or _says_something(item) for key, item in plain.items())
    if isinstance(plain, list):
        return any(map(_says_something, plain))
    return isinstance(plain, str) and bool(plain.strip())
