"""A guard without a model, for tests of the code around it."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any, overload

from guardrail.errors import ConfigurationError
from guardrail.inputs.folding import folded
from guardrail.inputs.messages import to_request
from guardrail.inputs.tools import call_text
from guardrail.policy import Policy, Thresholds
from guardrail.policy.acting import action_for, answer_action, enforced, on_outage
from guardrail.types import Action, Modality, Request, TextPart, Verdict, VideoStream, Where

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Literal, Unpack

    from guardrail.inputs.messages import Tools
    from guardrail.online.asking import AskOptions

_SCORES = {Action.PASS: 0.0, Action.STEER: 0.5, Action.FLAG: 1.0}
_AT = Thresholds(steer=0.4, flag=0.9)


class FakeGuard:
    """Judges by words: flags what holds one of `flag`, steers what holds one of `steer`.

        guard = FakeGuard(flag=["bomb"])
        app = GuardrailRunnable(guard=guard) | model

    It goes wherever an adapter or `guarded` only checks. It reads what a guard reads, folded copies
    too (and refuses what a guard refuses), but sees no word in a picture or video. What it was
    asked is in `seen`; what holds "outage" fails as a detector does.
    """

    def __init__(
        self,
        flag: Iterable[str] = ("bad",),
        steer: Iterable[str] = ("odd",),
        *,
        policy: Policy | None = None,
    ) -> None:
        self.policy = policy or Policy()
        self.seen: list[Any] = []
        self._rules = {Action.FLAG: tuple(flag), Action.STEER: tuple(steer)}

    def with_policy(self, policy: Policy, *, audit: Any = None) -> FakeGuard:
        """The same words under other rules; `audit` is told nothing."""
        flag, steer = self._rules[Action.FLAG], self._rules[Action.STEER]
        return FakeGuard(flag, steer, policy=policy)

    def check(
        self,
        value: Any,
        /,
        *,
        tools: Tools | None = None,
        timeout: float | None = None,
        client: str | None = None,
        request_id: str | None = None,
    ) -> Verdict:
        """The verdict of one request; the last three options have no effect."""
        request = to_request(value, policy=self.policy, tools=tools)  # refuses what a guard does
        _play(request)
        self.seen.append(_copied(value))
        text, copy = _said(request), folded(request) if self.policy.fold_text else None
        (own, word), failed = self._found(text), "outage" in text
        score = own if copy is None else max(own, self._found(_said(copy))[0])
        would_be = on_outage(self.policy) if failed else action_for(score, _AT, self.policy)
        return Verdict(
            action=enforced(would_be, self.policy),
            would_be=would_be,
            score=None if failed else score,
            tau_steer=_AT.steer,
            tau_flag=_AT.flag,
            layers=(1,),
            modality=request.modality,
            artefact_id="guard-fake",
            mode=self.policy.mode,
            reason="detector_failed" if failed else "score",
            folded=score > own,
            where=None if failed or score > own else self._where(request, word),
        )

    async def acheck(self, value: Any, /, **options: Unpack[AskOptions]) -> Verdict:
        """`check` for event loops."""
        return self.check(value, **options)

    def check_answer(self, value: Any, answer: str, /, **options: Unpack[AskOptions]) -> Verdict:
        """The verdict on an answer, by the same words; those to steer are nothing in it."""
        if self.policy.watch != "answer":
            raise ConfigurationError(
                'answers are not judged; set `watch` to "answer" in the policy'
            )
        asked = self.check(value, **options)
        (score, word), failed = self._found(answer), "outage" in answer
        would_be = answer_action(math.nan if failed else score, _AT.flag, self.policy)
        message = len(to_request(value, policy=self.policy).messages)
        return replace(
            asked,
            action=enforced(would_be, self.policy),
            would_be=would_be,
            score=None if failed else score,
            tau_steer=_AT.flag,
            reason="detector_failed" if failed else "answer",
            folded=False,
            where=Where(reading="answer", message=message, role="assistant", words=word),
        )

    async def acheck_answer(
        self, value: Any, answer: str, /, **options: Unpack[AskOptions]
    ) -> Verdict:
        """`check_answer` for event loops."""
        return self.check_answer(value, answer, **options)

    @overload
    def check_batch(
        self,
        values: Iterable[Any],
        *,
        return_exceptions: Literal[False] = False,
        **options: Unpack[AskOptions],
    ) -> list[Verdict]: ...

    @overload
    def check_batch(
        self,
        values: Iterable[Any],
        *,
        return_exceptions: bool,
        **options: Unpack[AskOptions],
    ) -> list[Verdict | BaseException]: ...

    def check_batch(
        self,
        values: Iterable[Any],
        *,
        return_exceptions: bool = False,
        **options: Unpack[AskOptions],
    ) -> list[Verdict] | list[Verdict | BaseException]:
        """Verdicts in the order of `values`.

        With `return_exceptions` a request's error takes its verdict's place; otherwise the first
        one is raised.
        """
        if not return_exceptions:
            return [self.check(value, **options) for value in values]
        return [self._outcome(value, options) for value in values]

    def _outcome(self, value: Any, options: AskOptions) -> Verdict | BaseException:
        try:
            return self.check(value, **options)
        except Exception as error:  # the caller wants to see it beside the other verdicts
            return error

    def _found(self, text: str) -> tuple[float, str]:
        """A text's score, and the word that it is for."""
        found = ((a, word) for a, words in self._rules.items() for word in words if word in text)
        action, word = next(found, (Action.PASS, ""))
        return _SCORES[action], word

    def _where(self, request: Request, word: str) -> Where:
        """The first judged part with the word in it; the end of the request if there is none."""
        for number, message in enumerate(request.messages):
            if not word or message.role not in self.policy.judged_roles:
                continue
            for place, part in enumerate(message.parts):
                if isinstance(part, TextPart) and word in part.text:
                    return Where(
                        reading="window",
                        message=number,
                        role=message.role,
                        part=place,
                        kind=Modality.TEXT,
                        words=word,
                    )
        last = len(request.messages) - 1
        return Where(reading="last", message=last, role=request.messages[last].role)


def _play(request: Request) -> None:
    """Go through long videos as a guard does: what is wrong with them shows only then."""
    for video in request.videos:
        if isinstance(video, VideoStream):
            for _ in video.windows:
                pass


def _copied(value: Any) -> Any:
    try:
        return copy.deepcopy(value)
    except TypeError:  # an open file
        return value


def _said(request: Request) -> str:
    """Every text of a request, a line each."""
    lines = [str(tool) for tool in request.tools]
    for message in request.messages:
        lines += [part.text for part in message.parts if isinstance(part, TextPart)]
        lines += [call_text(call) for call in message.tool_calls]
    return "\n".join(lines)
