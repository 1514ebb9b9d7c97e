"""What another LLM is about to read, as a guard reads it, and one verdict of it all.

What is said (the chat) and what comes beside it (system prompts, tools, schemas) are judged apart,
and the higher verdict counts: a long system prompt, benign or not, would otherwise drown what a
user asks, and a word planted in one tool would drown among twenty. What comes beside it is judged
piece by piece, each as something a user says, which scores are calibrated on, and once for as long
as it stays the same.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Self

from llama_index.core.base.llms.types import ChatMessage, TextBlock
from llama_index.core.llms.structured_llm import StructuredLLM

from guardrail.front.arguments import snapshot
from guardrail.front.chats import with_caution
from guardrail.front.wrap import LAST
from guardrail.inputs.canonical import canonical_chat
from guardrail.inputs.tools import shown_labels
from guardrail.policy.acting import is_refused_outage
from guardrail.types import Action
from guardrail_llamaindex.messages import (
    document_parts,
    picture_block,
    to_messages,
    with_pictures,
    words_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from llama_index.core.base.llms.types import MessageRole
    from llama_index.core.llms.llm import LLM

    from guardrail.front.consequences import Checker, Reaction, Settled
    from guardrail.policy import Policy
    from guardrail.types import Verdict

Chat = list[dict[str, Any]]

_MOST_KEPT = 1024  # verdicts on what comes beside chats, a few hundred bytes each
_RANK = {Action.PASS: 0, Action.STEER: 1, Action.FLAG: 2}
_SYSTEM = frozenset({"system", "developer"})
# Keywords of a call that say how to answer, and are for a provider alone.
_HOW = frozenset(
    "allow_parallel_tool_calls extra_headers extra_query formatted model parallel_tool_calls stop "
    "stop_sequences stream_options timeout tool_choice tool_config tool_required user "
    "verbose".split()
)


@dataclass(frozen=True, slots=True)
class LLMCall:
    """What goes to an LLM, its pictures canonical, and the chats in which a guard reads it."""

    sent: Any  # messages, or a prompt
    kwargs: dict[str, Any]
    said: Chat
    beside: list[Chat]

    @classmethod
    def of(
        cls, given: list[ChatMessage] | str, kwargs: dict[str, Any], llm: LLM, policy: Policy
    ) -> Self:
        """A chat or a prompt, with the keywords of its call.

        Raises:
            InputError: something in it that a guard cannot read.
        """
        frozen: Any = snapshot((given, kwargs))  # what is judged is what is sent
        given, kwargs = frozen
        chat = _chat(given)
        documents = kwargs.get("image_documents")
        if documents:
            chat.append({"role": "user", "content": document_parts(documents)})
        chat = canonical_chat(chat, policy)
        shown = chat
        if documents:
            kwargs["image_documents"] = [picture_block(part) for part in chat[-1]["content"]]
            shown = chat[:-1]
            if isinstance(given, str):  # one message, the pictures first
                [text] = shown
                chat = [{"role": "user", "content": [*chat[-1]["content"], *text["content"]]}]
        sent = given if isinstance(given, str) else with_pictures(given, shown)
        said = [turn for turn in chat if turn["role"] not in _SYSTEM]
        system = [turn["content"] for turn in chat if turn["role"] in _SYSTEM]
        beside = [_as_user(content) for content in system if content]
        names = shown_labels(chat, ())  # names and ids that hold more than that
        words = (*names, *_words_of(kwargs), *_own_words(llm))
        beside += [_as_user(each) for each in words]
        return cls(sent, kwargs, said, beside)

    def cautioned(self, words: str, role: MessageRole) -> Self:
        """The same with words of caution before it; for a chat, in its system message."""
        if isinstance(self.sent, str):
            return replace(self, sent=with_caution(self.sent, words))
        first, *others = self.sent
        if first.role.value not in _SYSTEM:
            return replace(self, sent=[ChatMessage(content=words, role=role), *self.sent])
        match first.blocks:
            case [TextBlock(text=text), *rest]:
                blocks = [TextBlock(text=f"{words}\n\n{text}"), *rest]
            case blocks:
                blocks = [TextBlock(text=f"{words}\n\n"), *blocks]
        return replace(self, sent=[first.model_copy(update={"blocks": blocks}), *others])


@dataclass(frozen=True, slots=True)
class Judge:
    """A guard and its rules, with the verdicts on what comes beside chats."""

    reaction: Reaction
    _kept: OrderedDict[str, Verdict] = field(default_factory=OrderedDict)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself: copies of an LLM share their guard and its verdicts."""
        return self

    def verdict(self, call: LLMCall) -> Verdict:
        """The highest verdict on what is said and on all that comes beside it."""
        LAST.set(None)  # a check that raises must not leave the verdict before it standing
        return self._highest([self._judged(chat, keep) for chat, keep in _chats(call)])

    async def averdict(self, call: LLMCall) -> Verdict:
        """`verdict` without blocking the event loop."""
        LAST.set(None)
        limits = self._guard.policy.limits
        places = asyncio.Semaphore(min(2 * limits.batch, limits.queue))  # others wait there, too

        async def judged(chat: Chat, keep: bool) -> Verdict:
            async with places:
                return await self._ajudged(chat, keep)

        return self._highest(
            await asyncio.gather(*(judged(chat, keep) for chat, keep in _chats(call)))
        )

    def settle(self, call: LLMCall, verdict: Verdict, role: MessageRole) -> tuple[Settled, LLMCall]:
        """What becomes of the call, and the call as it goes on."""
        after = self.reaction.settle(verdict, lambda words: call.cautioned(words, role))
        LAST.set(after.verdict)
        return after, after.cautioned or call

    @property
    def _guard(self) -> Checker:
        return self.reaction.guard

    def _judged(self, chat: Chat, keep: bool) -> Verdict:
        key = _digest(chat) if keep else ""
        found = self._kept.get(key)
        return found if found is not None else self._keep(key, self._guard.check(chat))

    async def _ajudged(self, chat: Chat, keep: bool) -> Verdict:
        key = _digest(chat) if keep else ""
        found = self._kept.get(key)
        return found if found is not None else self._keep(key, await self._guard.acheck(chat))

    def _keep(self, key: str, verdict: Verdict) -> Verdict:
        if key and verdict.reason == "score":  # an outage is over some time
            self._kept[key] = verdict
            if len(self._kept) > _MOST_KEPT:
                self._kept.popitem(last=False)
        return verdict

    def _highest(self, verdicts: Sequence[Verdict]) -> Verdict:
        return max(verdicts, key=self._weight)

    def _weight(self, verdict: Verdict) -> tuple[bool, int, int, float]:
        score = float("inf") if verdict.score is None else verdict.score
        outage = is_refused_outage(verdict, self._guard.policy)
        return outage, _RANK[verdict.action], _RANK[verdict.would_be], score


def _chats(call: LLMCall) -> list[tuple[Chat, bool]]:
    """What is judged, and whether its verdict is kept."""
    chats = [(chat, True) for chat in call.beside]
    # A chat of nothing at all is for the guard to refuse.
    return [(call.said, False), *chats] if call.said or not chats else chats


def _chat(given: Sequence[ChatMessage] | str) -> Chat:
    if isinstance(given, str):
        return [{"role": "user", "content": [{"type": "text", "text": given}]}]
    return to_messages(given, others=True)


def _as_user(content: Any) -> Chat:
    return [{"role": "user", "content": content}]


def _words_of(kwargs: Mapping[str, Any]) -> Iterator[str]:
    """The words in a call's keywords, each tool on its own."""
    for key, value in kwargs.items():
        if key in _HOW or key == "image_documents":
            continue
        items = value if isinstance(value, list | tuple) else [value]
        yield from filter(None, map(words_of, items))


def _own_words(llm: Any) -> Iterator[str]:
    """What LLMs of LlamaIndex around another one add: a schema, the inner one's system prompt."""
    while isinstance(llm, StructuredLLM):
        yield words_of(llm.output_cls)
        llm = llm.llm
        if llm.system_prompt:
            yield llm.system_prompt


def _digest(chat: Chat) -> str:
    text = json.dumps(chat, sort_keys=True, default=lambda value: value.hex())  # bytes of pictures
    return hashlib.sha256(text.encode()).hexdigest()
