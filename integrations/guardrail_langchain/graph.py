"""A guard as a node of a graph: it judges a state's messages before the model's node reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, get_args

from langchain_core.messages import RemoveMessage, ToolMessage
from langchain_core.runnables import Runnable, RunnableLambda
from langgraph.graph import END
from langgraph.types import Command, interrupt

from guardrail.errors import ConfigurationError
from guardrail.front.chats import RESULT_WITHHELD
from guardrail.front.consequences import Reaction
from guardrail_langchain import replies
from guardrail_langchain.beside import Beside, bound_beside, digest, noted
from guardrail_langchain.judging import (
    EVENT,
    ajudged,
    atell,
    judged,
    no_place,
    outcome,
    tell,
)
from guardrail_langchain.messages import canonical_messages, to_judged_chat
from guardrail_langchain.middleware import newest

if TYPE_CHECKING:
    from langchain_core.messages import BaseMessage

    from guardrail import Verdict
    from guardrail.front.consequences import Checker, OnFlag
    from guardrail_langchain.judging import Judging, Put

Flagged = Literal["keep", "remove"]
_DECISIONS = ("approve", "deny")


def guard_node(
    guard: Checker,
    *,
    goto: str,
    refused: str = END,
    key: str = "messages",
    model: Runnable[Any, Any] | None = None,
    on_flag: OnFlag | None = None,
    review: bool = False,
    flagged: Flagged = "keep",
    verdict_key: str | None = None,
    caution_key: str | None = None,
) -> Runnable[Any, Any]:
    """A node that hands on to the model's node what may be answered.

        graph.add_node("guard", guard_node(guard, goto="model"))
        graph.add_edge(START, "guard")
        graph.add_edge("tools", "guard")  # results are judged before the model's next turn

    It goes on by a `Command`, so it has no edge of its own to the model: a graph would follow both.
    What passes goes to `goto`. What is flagged is answered with the policy's refusal, as a message
    of the state, and goes to `refused`; under `on_flag="raise"` the run ends with
    `GuardrailViolation`, which is no `Exception`. All messages are judged in every turn, however a
    run came there: nothing that a checkpoint holds lets a resumed, forked or edited run pass
    unjudged. Each verdict is sent as a custom event and in the custom stream.

    With `review` a person decides on what is flagged: the run is interrupted with
    `{"guardrail_verdict": ..., "judged": ..., "messages": [...]}` (the verdict, a digest of what
    was judged, and what came in since the model's last turn) and goes on with
    `Command(resume="approve")` or `"deny"`. With `{"decision": "approve", "judged": ...}` an
    approval counts for the messages of that digest alone, and the run is refused if they changed
    meanwhile. A resumed node judges again. What was approved is asked about again in the next turn.

    Args:
        guard: the guard that checks.
        goto: the node that reads the messages next.
        refused: where a refused run goes.
        key: the messages in the state; their reducer is `add_messages`.
        model: the model that will read them: what is bound to it (tools, an answer's form,
            settings with words) is judged, too, once for as long as it stays the same.
        on_flag: another `on_flag` than the policy's.
        review: ask a person about what is flagged; the graph needs a checkpointer.
        flagged: whether messages that came in since the model's last turn stay in the state when
            they are refused. They are judged with every later turn there; "remove" takes them out
            and leaves tools' results as withheld, since a call needs one.
        verdict_key: a key of the state that gets each verdict, as JSON values.
        caution_key: a key of the state that gets the policy's words of caution, or None, for the
            model's node to put into its system prompt. Without one there is no place for a caution,
            and what would be steered counts as flagged under `unsteerable="caution"`.

    Raises:
        ConfigurationError: a setting that means nothing.
    """
    if flagged not in get_args(Flagged):
        raise ConfigurationError(f"flagged={flagged!r}: keep or remove")
    node = _Node(
        Reaction(guard, on_flag), goto, refused, key, model, review, flagged, verdict_key,
        caution_key,
    )  # fmt: skip
    return RunnableLambda(node.run, node.arun, name="guard")


@dataclass(frozen=True, slots=True)
class _Turn:
    """What was found before one turn of the model; no verdict where there was nothing to judge."""

    verdict: Verdict | None = None
    stops: bool = False
    caution: bool = False
    judged: str = ""
    changed: Sequence[BaseMessage] = ()


@dataclass(frozen=True, slots=True)
class _Node:
    """One node; a run's state is in its calls."""

    reaction: Reaction
    goto: str
    refused: str
    key: str
    model: Runnable[Any, Any] | None
    review: bool
    flagged: Flagged
    verdict_key: str | None
    caution_key: str | None
    beside: Beside = field(default_factory=Beside)

    def run(self, state: Any) -> Command[Any]:
        """Judge a state."""
        messages = self._messages(state)
        turn = judged(self._judging(messages), self.reaction.guard.check, tell)
        return self._after(messages, turn)

    async def arun(self, state: Any) -> Command[Any]:
        """`run` for event loops."""
        messages = self._messages(state)
        turn = await ajudged(self._judging(messages), self.reaction.guard.acheck, atell)
        return self._after(messages, turn)

    def _messages(self, state: Any) -> list[BaseMessage]:
        held = state if isinstance(state, Mapping) else vars(state)
        if self.key not in held:
            raise ConfigurationError(f"the state has no {self.key!r}, which is to be checked")
        return list(held[self.key])

    def _judging(self, messages: list[BaseMessage]) -> Judging[_Turn]:
        if not messages:
            return _Turn()
        sent = canonical_messages(messages, self.reaction.guard.policy)
        changed = [new for new, old in zip(sent, messages, strict=True) if new is not old]
        if any(message.id is None for message in changed):
            raise ConfigurationError(
                f"a message of {self.key!r} has a picture that cannot go on as it is, and no id by "
                "which it is replaced; have the reducer of the messages be add_messages"
            )
        put: Put = no_place if self.caution_key is None else noted
        chat = to_judged_chat(sent)
        after = yield chat, partial(outcome, self.reaction, False, put)
        caution = bool(after.value)
        if self.model is not None and not after.stops:
            chats = bound_beside(self.model)
            found = yield from self.beside.judge(chats, self.reaction, put=put)
            after, caution = found or after, caution or found is not None
        return _Turn(after.verdict, after.stops, caution, digest(chat), changed)

    def _after(self, messages: list[BaseMessage], turn: _Turn) -> Command[Any]:
        """Where the run goes; a person may be asked first."""
        update: dict[str, Any] = {}
        if turn.verdict is not None and self.verdict_key is not None:
            update[self.verdict_key] = turn.verdict.to_dict(words=False)
        if turn.stops and turn.verdict is not None and not self._approved(messages, turn):
            self.reaction.stop(turn.verdict)
            answer = replies.refusal(self.reaction.guard.policy.refusal_message, turn.verdict)
            gone = _gone(messages) if self.flagged == "remove" else []
            return Command(update={**update, self.key: [*gone, answer]}, goto=self.refused)
        if turn.changed:
            update[self.key] = list(turn.changed)  # the state keeps what was judged
        if self.caution_key is not None:
            words = self.reaction.guard.policy.caution_prompt
            update[self.caution_key] = words if turn.caution else None
        return Command(update=update, goto=self.goto)

    def _approved(self, messages: list[BaseMessage], turn: _Turn) -> bool:
        """Whether a person lets a flagged run go on.

        Raises:
            ConfigurationError: what the run was resumed with is no decision.
        """
        if not self.review or turn.verdict is None:
            return False
        shown = [message.model_dump(mode="json") for message in newest(messages)]
        asked = {
            EVENT: turn.verdict.to_dict(words=False),
            "judged": turn.judged,
            "messages": shown,
        }
        answer = interrupt(asked)
        given = answer if isinstance(answer, Mapping) else {"decision": answer}
        decision = given.get("decision")
        if decision not in _DECISIONS:
            raise ConfigurationError(
                f"a review was answered with {answer!r}; resume with 'approve' or 'deny'"
            )
        return decision == "approve" and given.get("judged") in (None, turn.judged)


def _gone(messages: Sequence[BaseMessage]) -> list[BaseMessage]:
    """What takes the newest messages out of a state."""
    gone: list[BaseMessage] = []
    for message in newest(messages):
        if isinstance(message, ToolMessage):
            held = {"content": RESULT_WITHHELD, "artifact": None, "status": "error"}
            gone.append(message.model_copy(update=held))
        elif message.id is not None:
            gone.append(RemoveMessage(id=message.id))
    return gone
