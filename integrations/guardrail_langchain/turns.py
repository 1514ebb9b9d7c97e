"""A turn of an agent's model: what it is about to read, and whose answer came."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from langchain_core.messages import AIMessage

from guardrail_langchain import replies
from guardrail_langchain.chat_model import ChatGuardedVLM
from guardrail_langchain.messages import to_chat
from guardrail_langchain.rules import Ruling, cautioned_system, no_place

if TYPE_CHECKING:
    from collections.abc import Mapping

    from langchain.agents.middleware import ModelRequest

    from guardrail.settling import Checker, OnFlag
    from guardrail_langchain.judging import Judging
    from guardrail_langchain.rules import Outcome


@dataclass(frozen=True, slots=True)
class Turns:
    """A guard and what a flag leads to; `active` says whether input is checked at all."""

    guard: Checker
    on_flag: OnFlag | None
    active: bool

    def before(self, state: Mapping[str, Any]) -> Judging[dict[str, Any] | None]:
        """What changes in the agent's state before the model is called."""
        if not self.active:
            return None
        chat = to_chat(state["messages"])
        after = yield chat, partial(self._ruling.settle, False, _noted)
        if (answer := self._refusal(after)) is not None:
            return {"messages": [answer], "jump_to": "end"}
        return {"guardrail_turn": {"judged": _digest(chat), "caution": after.value}}

    def at_call(
        self, request: ModelRequest[Any], inside: bool
    ) -> Judging[tuple[AIMessage | None, ModelRequest[Any]]]:
        """An answer in the model's place, or none and the request that goes on."""
        if not self.active or (inside and isinstance(request.model, ChatGuardedVLM)):
            return None, request
        state: Mapping[str, Any] = request.state
        chat, turn = to_chat(request.messages), state.get("guardrail_turn") or {}
        caution = bool(turn.get("caution"))
        # Other middleware may have changed what is sent since it was judged.
        if inside or turn.get("judged") != _digest(chat):
            after = yield chat, partial(self._ruling.settle, False, _noted)
            if (answer := self._refusal(after)) is not None:
                return answer, request
            caution = bool(after.value)
        if not caution or isinstance(request.model, ChatGuardedVLM):
            return None, request.override(messages=list(request.messages))
        words = self.guard.policy.caution_prompt
        system = cautioned_system(request.system_message, words)
        return None, request.override(system_message=system)

    def after(self, request: ModelRequest[Any], response: Any) -> Judging[Any]:
        """The response of a model that answered in the guarded one's place, if it may be kept.

        It has read the messages already; what would be cautioned counts as flagged.
        """
        after = yield to_chat(request.messages), partial(self._ruling.settle, False, no_place)
        return self._refusal(after) or response

    def _refusal(self, after: Outcome) -> AIMessage | None:
        if not after.stops:
            return None
        return replies.refusal(self._ruling.refusal(after.verdict), after.verdict)

    @property
    def _ruling(self) -> Ruling:
        return Ruling(self.guard, self.on_flag)


def is_ours(response: Any) -> bool:
    """Whether every answer in a model's response was judged in a guarded prefill."""
    response = getattr(response, "model_response", response)
    messages = [response] if isinstance(response, AIMessage) else response.result
    answers = [message for message in messages if isinstance(message, AIMessage)]
    return bool(answers) and all(
        message.response_metadata.get("model_provider") == "guardrail" for message in answers
    )


def _noted(value: Any, words: str) -> bool:
    """A caution has a place: the system prompt of the model call that follows."""
    return True


def _digest(chat: Any) -> str:
    return hashlib.sha256(repr(chat).encode()).hexdigest()
