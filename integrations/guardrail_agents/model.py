"""Any model of the SDK behind a guard."""

from __future__ import annotations

from functools import partial
from time import time
from typing import TYPE_CHECKING, Any

from agents import Model, ModelResponse, MultiProvider, Usage
from agents.models.fake_id import FAKE_RESPONSES_ID
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseContentPartAddedEvent,
    ResponseContentPartDoneEvent,
    ResponseCreatedEvent,
    ResponseOutputItemAddedEvent,
    ResponseOutputItemDoneEvent,
    ResponseOutputMessage,
    ResponseOutputRefusal,
    ResponseRefusalDeltaEvent,
    ResponseRefusalDoneEvent,
)

from guardrail.errors import UnsupportedContentError
from guardrail.front.consequences import Reaction
from guardrail.front.judging import Heard, Judge
from guardrail_agents.beside import settings_words
from guardrail_agents.items import ModelCall

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from agents import (
        AgentOutputSchemaBase,
        Handoff,
        ModelProvider,
        ModelSettings,
        ModelTracing,
        Tool,
    )
    from agents.items import TResponseInputItem, TResponseStreamEvent
    from openai.types.responses.response_prompt_param import ResponsePromptParam

    from guardrail.audit import Audit
    from guardrail.front.consequences import Checker, OnFlag


class GuardedModel(Model):
    """Any other model, with everything it is about to read judged first, in every turn.

        agent = Agent("helper", model=GuardedModel("gpt-4.1", guard=guard), tools=tools)

    Judged are the input items (history, what came before a handoff, calls, tools' outputs,
    pictures), and what comes beside them: instructions, each tool's and handoff's name, description
    and schema, the form of the answer, settings with words. What comes beside is judged piece by
    piece, once for as long as it stays the same, and the highest verdict counts. Pictures go on in
    the form that was judged.

    A flagged request is answered with a refusal part, which the SDK raises as its
    `ModelRefusalError` (or hands to the run's `error_handlers`); under `on_flag="raise"` it raises
    `GuardrailViolation`. Nothing is sent, and no stream begins, before the verdict. Another model
    cannot be steered: the policy's `unsteerable` says what happens instead, and a caution goes
    before the instructions.

    What is kept at the provider (`previous_response_id`, `conversation_id`, stored prompts) cannot
    be read, and is an error; use a session of the SDK.

    Args:
        model: a model, or a name; names are looked up when the model is first asked.
        guard: the guard that judges.
        on_flag: another `on_flag` than the policy's.
        audit: gets each verdict with `{"event": "call", "done": "flag", "caution" or "pass"}`.
        provider: who knows the model of a name; by default the SDK's own.
    """

    def __init__(
        self,
        model: Model | str | None,
        *,
        guard: Checker,
        on_flag: OnFlag | None = None,
        audit: Audit | None = None,
        provider: ModelProvider | None = None,
    ) -> None:
        self._model, self._provider = model, provider
        self.judge = Judge(Reaction(guard, on_flag, audit))

    @property
    def model(self) -> Model:
        """The model behind the guard."""
        if not isinstance(self._model, Model):
            self._model = (self._provider or MultiProvider()).get_model(self._model)
        return self._model

    async def get_response(
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],
        model_settings: ModelSettings,
        tools: list[Tool],
        output_schema: AgentOutputSchemaBase | None,
        handoffs: list[Handoff],
        tracing: ModelTracing,
        *,
        previous_response_id: str | None,
        conversation_id: str | None,
        prompt: ResponsePromptParam | None,
    ) -> ModelResponse:
        """Judge what the model would read, and have it answered.

        Raises:
            InputError: something in it that a guard cannot read.
            GuardrailViolation: it was flagged, and the rules say `on_flag = "raise"`.
        """
        stored = _stored(previous_response_id, conversation_id, prompt)
        words = partial(settings_words, model_settings, tools, output_schema, handoffs)
        call = await self._judged(system_instructions, input, words, stored)
        if call is None:
            refusal = _message(self.judge.guard.policy.refusal_message)
            return ModelResponse(output=[refusal], usage=Usage(), response_id=None)
        return await self.model.get_response(
            call.instructions,
            call.items,
            model_settings,
            tools,
            output_schema,
            handoffs,
            tracing,
            **stored,
        )

    async def stream_response(
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],
        model_settings: ModelSettings,
        tools: list[Tool],
        output_schema: AgentOutputSchemaBase | None,
        handoffs: list[Handoff],
        tracing: ModelTracing,
        *,
        previous_response_id: str | None,
        conversation_id: str | None,
        prompt: ResponsePromptParam | None,
    ) -> AsyncIterator[TResponseStreamEvent]:
        """`get_response` as events; the first one comes after the verdict."""
        stored = _stored(previous_response_id, conversation_id, prompt)
        words = partial(settings_words, model_settings, tools, output_schema, handoffs)
        call = await self._judged(system_instructions, input, words, stored)
        if call is None:
            for refused in _events(self.judge.guard.policy.refusal_message):
                yield refused
            return
        events = self.model.stream_response(
            call.instructions,
            call.items,
            model_settings,
            tools,
            output_schema,
            handoffs,
            tracing,
            **stored,
        )
        try:
            async for event in events:
                yield event
        finally:
            if (close := getattr(events, "aclose", None)) is not None:
                await close()

    async def close(self) -> None:
        """Close the model behind the guard."""
        await self.model.close()

    def get_retry_advice(self, request: Any) -> Any:
        """That of the model behind the guard."""
        return self.model.get_retry_advice(request)

    async def _cleanup_on_run_end(self, owner: object) -> None:
        if (cleanup := getattr(self.model, "_cleanup_on_run_end", None)) is not None:
            await cleanup(owner)

    async def _judged(
        self, instructions: str | None, items: Any, words: Any, stored: Mapping[str, Any]
    ) -> ModelCall | None:
        """The call as it goes on; None where a refusal stands for it."""
        judge = self.judge

        def read() -> ModelCall:
            if named := [key for key, value in stored.items() if value is not None]:
                raise UnsupportedContentError(
                    f"{' and '.join(named)} names what is kept at the provider, which a guard "
                    "cannot read; keep the history in a session of the SDK, and prompts in "
                    "instructions"
                )
            policy = judge.guard.policy
            given = words(policy)
            return ModelCall.of(items, policy, instructions=instructions, words=given)

        call, verdict = await judge.aruled(read)
        if call is None or verdict is None:
            return ModelCall(instructions, items, Heard([], []))
        after = judge.settle(verdict, call.cautioned)
        if after.done == "flag":
            judge.reaction.stop(after.verdict)
            return None
        return after.cautioned or call


def _stored(
    previous_response_id: str | None, conversation_id: str | None, prompt: Any
) -> dict[str, Any]:
    return {
        "previous_response_id": previous_response_id,
        "conversation_id": conversation_id,
        "prompt": prompt,
    }


def _message(words: str) -> ResponseOutputMessage:
    return ResponseOutputMessage(
        id=FAKE_RESPONSES_ID,
        type="message",
        role="assistant",
        status="completed",
        content=[_part(words)],
    )


def _part(words: str) -> ResponseOutputRefusal:
    return ResponseOutputRefusal(type="refusal", refusal=words)


def _events(words: str) -> list[TResponseStreamEvent]:
    """A refusal as a model of the Responses API would stream it."""
    message = _message(words)
    place: dict[str, Any] = {"item_id": message.id, "output_index": 0}
    where = {**place, "content_index": 0}
    begun = message.model_copy(update={"content": [], "status": "in_progress"})
    response = Response(
        id=FAKE_RESPONSES_ID,
        created_at=time(),
        model="guardrail",
        object="response",
        output=[],
        tool_choice="auto",
        tools=[],
        parallel_tool_calls=False,
    )
    whole = response.model_copy(update={"output": [message]})
    steps: list[tuple[Any, dict[str, Any]]] = [
        (ResponseCreatedEvent, {"response": response, "type": "response.created"}),
        (
            ResponseOutputItemAddedEvent,
            {"item": begun, "output_index": 0, "type": "response.output_item.added"},
        ),
        (
            ResponseContentPartAddedEvent,
            {**where, "part": _part(""), "type": "response.content_part.added"},
        ),
        (ResponseRefusalDeltaEvent, {**where, "delta": words, "type": "response.refusal.delta"}),
        (ResponseRefusalDoneEvent, {**where, "refusal": words, "type": "response.refusal.done"}),
        (
            ResponseContentPartDoneEvent,
            {**where, "part": _part(words), "type": "response.content_part.done"},
        ),
        (
            ResponseOutputItemDoneEvent,
            {"item": message, "output_index": 0, "type": "response.output_item.done"},
        ),
        (ResponseCompletedEvent, {"response": whole, "type": "response.completed"}),
    ]
    return [kind(sequence_number=i, **given) for i, (kind, given) in enumerate(steps)]
