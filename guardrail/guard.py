"""The guard: one model, one artefact, one policy, and every way of asking.

Importing this module loads no tensor library; making a guard does.
"""

from __future__ import annotations

import logging
import warnings
import weakref
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Self, overload

from guardrail.artefact import Artefact
from guardrail.audit import Audit, fan_out
from guardrail.errors import UnsupportedModelError
from guardrail.model.load import LoadedModel, load_model, wrap_model
from guardrail.online.streams import AsyncGuardStream, GuardStream
from guardrail.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path
    from typing import Unpack

    from transformers import PreTrainedModel, PreTrainedTokenizerBase, ProcessorMixin

    from guardrail.artefact.header import Fingerprint
    from guardrail.model.load import Processing
    from guardrail.monitor import Monitor
    from guardrail.online.asking import AskOptions, GenerateOptions
    from guardrail.online.core import Core
    from guardrail.policy import Thresholds
    from guardrail.types import Load, Modality, Result, Verdict
    from guardrail.worker.jobs import Job

    Model = LoadedModel | tuple[PreTrainedModel, ProcessorMixin | PreTrainedTokenizerBase]

log = logging.getLogger("guardrail")
_CLOSE_WAIT_S = 30.0
_HUNG_S = 30.0  # one step of a slow model may take that long


class Guard:
    """Answers and verdicts from inside one model's own prefill; safe to share between threads.

        guard = Guard.from_pretrained("path-or-hub-id", artefact="model.guard.safetensors")
        result = guard.generate("What is the capital of France?")
        result.text, result.verdict

    Requests wait in a queue for the one thread that owns the model, and like ones are answered
    together. `timeout` is in seconds, from asking to answer (None: the policy's). `audit` gets
    every verdict, on the model's thread. Close the guard, or use it in a `with` block, to take its
    hooks off the model.
    """

    def __init__(
        self,
        model: Model,
        artefact: Artefact | str | Path,
        *,
        policy: Policy | None = None,
        allow_mismatch: bool = False,
        audit: Audit | None = None,
    ) -> None:
        """Guard a loaded model, or a model and its processor.

        Raises:
            ArtefactMismatchError: the artefact was fitted on another model.
            UnsupportedModelError: a guard cannot work inside this model.
        """
        from guardrail.model.fingerprint import require_fitted_on
        from guardrail.online.engine import Engine

        loaded = model if isinstance(model, LoadedModel) else wrap_model(*model)
        fitted = found_artefact(artefact)
        running = require_fitted_on(fitted, loaded, allow_mismatch=allow_mismatch)
        differing = _told(fitted.header.fingerprint, running)
        self._assemble(Engine(loaded, fitted, policy or Policy(), audit), audit)
        if differing:
            facts = {name: list(pair) for name, pair in differing.items()}
            self._engine.record(None, {"event": "mismatch_allowed", "fields": facts})

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        artefact: Artefact | str | Path,
        *,
        policy: Policy | None = None,
        allow_mismatch: bool = False,
        audit: Audit | None = None,
        **load: Any,
    ) -> Self:
        """Load a model from a folder or the hub (see `load_model` for `load`) and guard it."""
        fitted = found_artefact(artefact)  # before the weights: it fails faster
        loaded = load_model(source, **load)
        return cls(loaded, fitted, policy=policy, allow_mismatch=allow_mismatch, audit=audit)

    def _assemble(self, engine: Core, audit: Audit | None) -> None:
        from guardrail.online.asking import Asking

        self._engine, self._asking, self._audit = engine, Asking(engine), audit
        self._finalizer = weakref.finalize(self, self._engine.shutdown)
        self._finalizer.atexit = False  # at the interpreter's end the worker looks after itself

    @property
    def artefact(self) -> Artefact:
        """What was fitted."""
        return self._engine.artefact

    @property
    def policy(self) -> Policy:
        """The rules in force."""
        return self._engine.policy

    @property
    def loaded(self) -> LoadedModel:
        """The guarded model and its processor.

        Raises:
            UnsupportedModelError: it is in no reach of transformers (a guard inside vLLM).
        """
        found = getattr(self._engine, "loaded", None)
        if not isinstance(found, LoadedModel):
            raise UnsupportedModelError(
                "this guard's model is run by another engine, and there are no weights to look at "
                "here; load the model with `Guard.from_pretrained` for this"
            )
        return found

    @property
    def processing(self) -> Processing:
        """What feeds the model: its processor and tokenizer, and its name."""
        return self._engine.processing

    @property
    def context(self) -> int | None:
        """How many positions the model has; None if that is not told."""
        return self._engine.context

    @property
    def fingerprint(self) -> Fingerprint:
        """Which model is guarded."""
        return self._engine.fingerprint

    @property
    def thresholds(self) -> Mapping[Modality, Thresholds]:
        """The scores from which requests are steered and flagged, by modality."""
        return MappingProxyType(self._engine.thresholds)

    @property
    def monitor(self) -> Monitor:
        """Counts of this guard's verdicts since it was made; no text is kept."""
        return self._engine.monitor

    @property
    def load(self) -> Load:
        """How many requests wait for the model and run on it now, those of other guards too."""
        return self._engine.worker.load(self.policy.limits)

    @property
    def supports_tools(self) -> bool:
        """Whether the model's chat template renders tools."""
        return self._engine.encoder.supports_tools

    @property
    def trouble(self) -> str | None:
        """Why requests cannot be answered now; None when they can."""
        if self.closed:
            return "the guard is closed"
        if self.load.overdue_s > _HUNG_S:
            return "the model does not come back from a request; start the server again"
        return self._engine.trouble()

    @property
    def closed(self) -> bool:
        """Whether the guard takes no more requests."""
        return not self._finalizer.alive

    def with_policy(self, policy: Policy, *, audit: Audit | None = None) -> Guard:
        """Another guard on the same model, artefact and queue, under other rules.

        Its verdicts go to this guard's `audit`, and to the one given here.
        """
        other, told = Guard.__new__(Guard), fan_out(self._audit, audit)
        other._assemble(self._engine.under(policy, told), told)
        return other

    def close(self) -> None:
        """End this guard's requests and take its hooks off the model; safe to call twice."""
        if self._finalizer.detach() is not None:
            self._engine.shutdown(wait_s=_CLOSE_WAIT_S)

    def __enter__(self) -> Self:
        """Return the guard itself."""
        return self

    def __exit__(self, *_error: object) -> None:
        """Close the guard."""
        self.close()

    def generate(self, value: Any, /, **options: Unpack[GenerateOptions]) -> Result:
        """Answer a prompt, a picture or a chat, in which there may be videos.

        `tools` are function schemas in the OpenAI form; calls come in the result's `tool_calls`.

        Raises:
            InputError: the request cannot be read, or is larger than the policy allows.
            UnsupportedModelError: tools were given to a model whose chat template knows none.
            GuardrailViolation: it was flagged, and the policy says `on_flag = "raise"`.
            RequestTimeoutError: the time was over.
            QueueFullError: too many requests are waiting.
        """
        return self._asking.wait(self._asking.answer(value, options))

    def check(self, value: Any, /, **options: Unpack[AskOptions]) -> Verdict:
        """The verdict alone: the pass ends after the readout layer. Never raises on a flag.

        It is what another model's requests are judged by, which may read what this one cannot: with
        the policy's `fold_text` a request that differs in plain letters is scored in both forms.
        """
        return self._asking.wait(self._asking.verdict(value, options))

    def check_answer(self, value: Any, answer: str, /, **options: Unpack[AskOptions]) -> Verdict:
        """The verdict on what another model answered, in one prefill; never raises on a flag.

        The policy's `watch` has to be "answer". An answer too short to be judged has no score.

        Raises:
            ConfigurationError: answers are not watched.
        """
        return self._asking.wait(self._asking.verdict(value, options, answer=answer))

    async def acheck_answer(
        self, value: Any, answer: str, /, **options: Unpack[AskOptions]
    ) -> Verdict:
        """`check_answer` without blocking the event loop."""
        job = await self._asking.verdict_async(value, options, answer=answer)
        return await self._asking.wait_async(job)

    def stream(self, value: Any, /, **options: Unpack[GenerateOptions]) -> GuardStream:
        """Answer in chunks; none comes before the verdict. Close the stream to stop early.

        A long video is judged in this call, but for the frames that it is answered from.
        """
        return GuardStream(partial(self._asking.answer, value, options), self._give_up)

    def astream(self, value: Any, /, **options: Unpack[GenerateOptions]) -> AsyncGuardStream:
        """`stream` for `async for`; the request starts with the first chunk asked for."""
        return AsyncGuardStream(partial(self._asking.answer_async, value, options), self._give_up)

    async def agenerate(self, value: Any, /, **options: Unpack[GenerateOptions]) -> Result:
        """`generate` without blocking the event loop; cancelling the task ends the request."""
        return await self._asking.wait_async(await self._asking.answer_async(value, options))

    async def acheck(self, value: Any, /, **options: Unpack[AskOptions]) -> Verdict:
        """`check` without blocking the event loop."""
        return await self._asking.wait_async(await self._asking.verdict_async(value, options))

    @overload
    def batch(
        self,
        values: Iterable[Any],
        *,
        return_exceptions: Literal[False] = False,
        **options: Unpack[GenerateOptions],
    ) -> list[Result]: ...

    @overload
    def batch(
        self,
        values: Iterable[Any],
        *,
        return_exceptions: bool,
        **options: Unpack[GenerateOptions],
    ) -> list[Result | BaseException]: ...

    def batch(
        self,
        values: Iterable[Any],
        *,
        return_exceptions: bool = False,
        **options: Unpack[GenerateOptions],
    ) -> list[Result] | list[Result | BaseException]:
        """Answers in the order of `values`; waits for places in the queue. `timeout` is for each.

        With `return_exceptions` a request's error, or its violation, takes its answer's place;
        otherwise the first one ends the rest and is raised.
        """
        ask = self._asking.answer
        return self._asking.wait_all(values, ask, options, return_exceptions=return_exceptions)

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
        """Verdicts in the order of `values`; see `batch`."""
        ask = self._asking.verdict
        return self._asking.wait_all(values, ask, options, return_exceptions=return_exceptions)

    def _give_up(self, job: Job[Any]) -> None:
        # A bound method: a stream that holds it keeps the guard, and so its hooks, alive.
        self._asking.give_up(job)


def found_artefact(artefact: Artefact | str | Path) -> Artefact:
    """An artefact as it is, from a file, or from the hub."""
    return artefact if isinstance(artefact, Artefact) else Artefact.from_pretrained(artefact)


def _told(fitted: Fingerprint, running: Fingerprint) -> dict[str, tuple[str, str]]:
    """What makes the model another than the one of the fit, told to who runs it."""
    for name, (then, now) in fitted.warnings(running).items():
        warnings.warn(f"the artefact was fitted with {name} {then}, this is {now}", stacklevel=4)
    fields = fitted.differences(running)
    if fields:
        told = "; ".join(f"{k}: fitted on {a}, running {b}" for k, (a, b) in fields.items())
        log.warning("the artefact was fitted on another model, as allow_mismatch allows: %s", told)
    return fields
