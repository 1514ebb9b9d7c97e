"""Any model of Pydantic-AI behind a guard."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.models import CompletedStreamedResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.usage import RequestUsage

from guardrail.front.consequences import Reaction, settled
from guardrail.front.judging import Heard, Judge
from guardrail.policy.acting import stopped
from guardrail_pydantic_ai.messages import ModelCall

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence

    from pydantic_ai import RunContext
    from pydantic_ai.messages import ModelMessage
    from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
    from pydantic_ai.settings import ModelSettings

    from guardrail.audit import Audit
    from guardrail.front.consequences import Checker, OnFlag
    from guardrail.types import Verdict

METADATA = "guardrail"  # the key of the verdict in an answer's metadata


class GuardedModel(WrapperModel):
    """Any other model, with everything it is about to read judged first, in every turn.

        agent = Agent(GuardedModel("openai:gpt-4.1", guard=guard), tools=[search])

    Judged are all messages of a request (history, thoughts, calls, tools' results, pictures), and
    what comes beside them: system prompts and instructions, each tool's name, description and
    schema, the form of the answer, settings with words, and what a provider wants back of earlier
    answers. What comes beside is judged piece by piece, as something a user says, once for as long
    as it stays the same, and the highest verdict counts. Pictures go on as data, in the form that
    was judged.

    A flagged request is answered with the policy's refusal message (`finish_reason` is
    "content_filter"), or raises `GuardrailViolation` under `on_flag="raise"`; where an object must
    come it raises always. Nothing is sent, and no stream begins, before the verdict, which is in
    the answer's `metadata["guardrail"]`. Another model cannot be steered: the policy's
    `unsteerable` says what happens instead, and a caution becomes the first system prompt.

    Args:
        wrapped: a model, or a name as Pydantic-AI knows it.
        guard: the guard that judges.
        on_flag: another `on_flag` than the policy's.
        audit: gets each verdict with `{"event": "call", "done": "flag", "caution" or "pass"}`.
    """

    def __init__(
        self,
        wrapped: Model | str,
        *,
        guard: Checker,
        on_flag: OnFlag | None = None,
        audit: Audit | None = None,
    ) -> None:
        super().__init__(wrapped)
        self._judge = Judge(Reaction(guard, on_flag, audit))

    @classmethod
    def judged_by(cls, judge: Judge, wrapped: Model) -> GuardedModel:
        """One whose verdicts on what comes beside messages are kept elsewhere."""
        made = cls(wrapped, guard=judge.guard)
        made._judge = judge
        return made

    def is_judged_by(self, judge: Judge) -> bool:
        """Whether these are the judge's own verdicts."""
        return self._judge is judge

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Judge what the model would read, and have it answered.

        Raises:
            InputError: something in it that a guard cannot read.
            GuardrailViolation: it was flagged, and the rules say `on_flag = "raise"`, or an object
                must come.
        """
        sent, verdict, refused = await self._judged(
            messages, model_settings, model_request_parameters
        )
        if refused is not None:
            return refused
        response = await self.wrapped.request(sent, model_settings, model_request_parameters)
        return replace(response, metadata=_told(response.metadata, verdict))

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """`request` as a stream, which begins after the verdict."""
        sent, verdict, refused = await self._judged(
            messages, model_settings, model_request_parameters
        )
        if refused is not None:
            yield CompletedStreamedResponse(
                refused, model_request_parameters=model_request_parameters, replay_events=True
            )
            return
        async with self.wrapped.request_stream(
            sent, model_settings, model_request_parameters, run_context
        ) as stream:
            stream.metadata = _told(stream.metadata, verdict)
            yield stream

    async def count_tokens(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> RequestUsage:
        """Count what would be sent; what is flagged is sent nowhere, and counts for nothing.

        The request itself is not judged again if it says the same.
        """
        judge = self._judge
        read = self._reading(messages, model_settings, model_request_parameters)
        call, verdict = await judge.aruled(read)
        sent = messages if call is None else call.messages
        if call is not None and verdict is not None:
            if verdict.reason == "score":  # an outage may be over by then
                judge.remember(call.heard, verdict)
            after = settled(
                verdict,
                judge.guard.policy,
                caution=call.cautioned,
                on_flag=judge.reaction.on_flag,
            )
            if after.done == "flag":
                return RequestUsage()
        return await self.wrapped.count_tokens(sent, model_settings, model_request_parameters)

    async def batch_encode(self, request: Any) -> Any:
        """Judge one request of a batch; there is no place for a refusal, so a flag raises.

        Raises:
            GuardrailViolation: it was flagged.
        """
        given = request.model_settings, request.model_request_parameters
        sent = await self._passed(request.messages, *given)
        return await self.wrapped.batch_encode(replace(request, messages=sent))

    async def compact_messages(
        self, request_context: Any, *, instructions: str | None = None
    ) -> ModelResponse:
        """Judge a history, and how to sum it up, before a model does; a flag raises.

        Raises:
            GuardrailViolation: it was flagged.
        """
        sent = await self._passed(
            request_context.messages,
            request_context.model_settings,
            request_context.model_request_parameters,
            [instructions or ""],
        )
        return await self.wrapped.compact_messages(
            replace(request_context, messages=sent), instructions=instructions
        )

    async def _passed(
        self,
        messages: list[ModelMessage],
        settings: ModelSettings | None,
        parameters: ModelRequestParameters,
        more: Sequence[str] = (),
    ) -> list[ModelMessage]:
        call, verdict, done = await self._ruled(messages, settings, parameters, more)
        if verdict is not None and done == "flag":
            raise stopped(verdict)
        return call.messages

    async def _judged(
        self,
        messages: list[ModelMessage],
        settings: ModelSettings | None,
        parameters: ModelRequestParameters,
    ) -> tuple[list[ModelMessage], Verdict | None, ModelResponse | None]:
        """What is sent, the verdict on it, and the refusal that stands for an answer, if any."""
        call, verdict, done = await self._ruled(messages, settings, parameters)
        if verdict is None or done != "flag":
            return call.messages, verdict, None
        if not parameters.allow_text_output or parameters.output_object is not None:
            raise stopped(verdict)  # Pydantic-AI would ask again, for an object
        self._judge.reaction.stop(verdict)
        refusal = ModelResponse(
            parts=[TextPart(self._judge.guard.policy.refusal_message)],
            model_name=self.model_name,
            finish_reason="content_filter",
            metadata=_told(None, verdict),
        )
        return call.messages, verdict, refusal

    def _reading(
        self,
        messages: list[ModelMessage],
        settings: ModelSettings | None,
        parameters: ModelRequestParameters,
        more: Sequence[str] = (),
    ) -> Callable[[], ModelCall]:
        of = partial(ModelCall.of, model=self.wrapped, more=more)
        return partial(of, messages, settings, parameters, self._judge.guard.policy)

    async def _ruled(
        self,
        messages: list[ModelMessage],
        settings: ModelSettings | None,
        parameters: ModelRequestParameters,
        more: Sequence[str] = (),
    ) -> tuple[ModelCall, Verdict | None, str]:
        judge = self._judge
        read = self._reading(messages, settings, parameters, more)
        call, verdict = await judge.aruled(read)
        if call is None or verdict is None:
            return ModelCall(messages, Heard([], [])), None, "pass"
        after = judge.settle(verdict, call.cautioned)
        return after.cautioned or call, after.verdict, after.done


def _told(metadata: dict[str, Any] | None, verdict: Verdict | None) -> dict[str, Any] | None:
    if verdict is None:
        return metadata
    return {**(metadata or {}), METADATA: verdict.to_dict(words=False)}
