"""The callers' side of a guard: from what they gave to a queued job, and from it to the answer.

A text is queued at once. Before a request with media is, they are decoded and its long videos
judged, which may take long: threads of callers do it themselves, event loops leave it to others.

A new option of `generate` needs its name in `GenerateOptions`, a field with its bounds in
`guardrail.model.settings.Settings`, and, where transformers knows it, its place in
`generation_config` beside it; only requests with the same value then share a batch. The adapters
have a field for every setting (`ChatGuardedVLM` in guardrail_langchain/chat_model.py, `GuardedVLM`
in guardrail_llamaindex/llm.py); the server has those it lets clients choose (`AskedBody` in
guardrail/server/schemas.py, `options_of` in guardrail/server/options.py). An option of every way of
asking stands in `AskOptions` and goes with the `Caller`, in `_caller`.
"""

from __future__ import annotations

import asyncio
import reprlib
import threading
import time
import uuid
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

from pydantic import ValidationError

from guardrail.errors import (
    ConfigurationError,
    GuardrailViolation,
    LimitExceededError,
    QueueFullError,
    RequestTimeoutError,
)
from guardrail.inputs.folding import folded
from guardrail.inputs.messages import drafted
from guardrail.inputs.threads import in_own_thread, patience
from guardrail.model.settings import Settings
from guardrail.online.jobs import NOTHING_YET, AnswerJob, CheckJob
from guardrail.online.video_scan import Scan
from guardrail.types import Message, TextPart
from guardrail.worker.jobs import LATE, Caller
from guardrail.worker.waiting import within_share

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from guardrail.inputs.messages import Draft, Tools
    from guardrail.online.core import Core
    from guardrail.online.jobs import Floor, Item
    from guardrail.policy import Limits
    from guardrail.types import Request
    from guardrail.worker.jobs import Job

T = TypeVar("T")

J = TypeVar("J", AnswerJob, CheckJob)

_LONGEST_NAME = 256


class AskOptions(TypedDict, total=False):
    """What every way of asking takes.

    `tools` are function schemas in the OpenAI form, which a model reads before the chat; `timeout`
    is in seconds, from asking to answer (None: the policy's). Requests of different `client`s take
    turns; those without one are together one client. `request_id` goes on record instead of a
    made-up id; a list's requests get `-0`, `-1` and so on behind it.
    """

    tools: Tools | None
    timeout: float | None
    client: str | None
    request_id: str | None


class GenerateOptions(AskOptions, total=False):
    """How an answer is generated; see `guardrail.model.settings.Settings`.

    With `json_schema` the answer is JSON under that schema, or, where tools are offered, a call
    instead. `tool_choice` is `auto`, `none` (no tool is shown to the model), `required` (the answer
    is one call) or a tool's name (of that one). Both need the extra `structured`, take no `stop`
    and no beams, and refuse before the model runs a schema that cannot be kept to. An answer that
    `max_new_tokens` ends is not in its form, and its `finish_reason` is `length`. `logprobs`, 0 to
    20, asks how likely each token was, and that many alternatives.
    """

    max_new_tokens: int
    do_sample: bool | None
    temperature: float | None
    top_p: float | None
    top_k: int | None
    repetition_penalty: float | None
    seed: int | None
    stop: Sequence[str]
    num_beams: int
    json_schema: Mapping[str, Any] | None
    tool_choice: str | None
    logprobs: int | None


_ASK = AskOptions.__optional_keys__


class Asking:
    """Submits requests to an engine and waits for them, in threads and in event loops.

    As many requests as may wait for the model may have their media read at once, and as many more
    their long videos judged. Text waits for neither.
    """

    def __init__(self, engine: Core) -> None:
        self._engine, queue = engine, engine.policy.limits.queue
        self._reads, self._scans = Places(queue), Places(queue)

    def answer(
        self,
        value: Any,
        options: GenerateOptions,
        emit: Callable[[Item], None] | None = None,
        cancelled: threading.Event | None = None,
        *,
        wait: bool = False,
    ) -> AnswerJob:
        """Queue a request for an answer; its media are read, its long videos judged, in here.

        Raises:
            InputError: the value cannot be read, or the model cannot be shown it.
        """
        return self._submit(value, options, self._answer_job(options, emit, cancelled, wait=wait))

    def verdict(
        self,
        value: Any,
        options: AskOptions,
        cancelled: threading.Event | None = None,
        *,
        answer: str | None = None,
        wait: bool = False,
    ) -> CheckJob:
        """Queue a request for a verdict, on an `answer` to it if there is one; see `answer`."""
        job = self._check_job(options, cancelled, answer=answer, wait=wait)
        return self._submit(value, options, job)

    async def answer_async(
        self,
        value: Any,
        options: GenerateOptions,
        emit: Callable[[Item], None] | None = None,
        cancelled: threading.Event | None = None,
    ) -> AnswerJob:
        """`answer` without blocking the event loop."""
        job = self._answer_job(options, emit, cancelled)
        return await self._submit_async(value, options, job)

    async def verdict_async(
        self, value: Any, options: AskOptions, *, answer: str | None = None
    ) -> CheckJob:
        """`verdict` without blocking the event loop."""
        return await self._submit_async(value, options, self._check_job(options, answer=answer))

    def give_up(self, job: Job[Any]) -> None:
        """Nobody waits for this job any more."""
        self._engine.worker.cancel(job)

    def wait(self, job: Job[T]) -> T:
        """Block until a job is settled, its time is over, or the wait is interrupted."""
        try:
            return job.result()
        except BaseException:  # Ctrl-C among them; a settled job does not mind
            self.give_up(job)
            raise

    def wait_all(
        self,
        values: Iterable[Any],
        ask: Callable[..., Job[T]],
        options: AskOptions,
        *,
        return_exceptions: bool,
    ) -> list[T | BaseException]:
        """Ask everything, then wait in order; the first error ends all, unless it is wanted."""

        def asked(item: tuple[int, Any]) -> Job[T]:
            number, value = item
            return ask(value, _numbered(options, number), wait=True)

        jobs: list[Job[T] | BaseException] = []
        try:
            for item in enumerate(values):
                jobs.append(_caught(asked, item) if return_exceptions else asked(item))
            outcomes: list[T | BaseException] = []
            for job in jobs:
                if isinstance(job, BaseException):
                    outcomes.append(job)
                elif return_exceptions:
                    outcomes.append(_caught(self.wait, job))
                else:
                    outcomes.append(self.wait(job))
            return outcomes
        except BaseException:
            for job in jobs:
                if not isinstance(job, BaseException):
                    self.give_up(job)
            raise

    async def wait_async(self, job: Job[T]) -> T:
        """`wait` without blocking the event loop."""
        try:
            async with asyncio.timeout(job.caller.left_s()):
                return await asyncio.wrap_future(job.future)
        except TimeoutError:
            if job.future.done() and not job.future.cancelled():
                return job.future.result()
            self.give_up(job)
            raise RequestTimeoutError(LATE) from None
        except BaseException:  # a cancelled task among them
            self.give_up(job)
            raise

    def _answer_job(
        self,
        options: GenerateOptions,
        emit: Callable[[Item], None] | None,
        cancelled: threading.Event | None,
        *,
        wait: bool = False,
    ) -> AnswerJob:
        limits = self._engine.policy.limits
        caller = _caller(options, limits, cancelled, wait=wait)
        return self._engine.answer_job(_settings(options, limits), caller, emit)

    def _check_job(
        self,
        options: AskOptions,
        cancelled: threading.Event | None = None,
        *,
        answer: str | None = None,
        wait: bool = False,
    ) -> CheckJob:
        if unknown := options.keys() - _ASK:
            raise TypeError(f"a guard is not asked with {', '.join(sorted(unknown))}")
        limits = self._engine.policy.limits
        if answer is not None:
            limits.check("text_chars", len(answer), what="the answer")
        caller = _caller(options, limits, cancelled, wait=wait)
        return self._engine.check_job(caller, answer=answer)

    def _submit(self, value: Any, options: AskOptions, job: J) -> J:
        draft = self._submit_text(value, options, job)
        if draft is not None:
            self._submit_media(draft, job)
        return job

    async def _submit_async(self, value: Any, options: AskOptions, job: J) -> J:
        """Media are read, and long videos judged, in a thread of their own.

        So whoever waits there keeps none of the loop's few threads from text.
        """
        try:
            with self._engine.worker.expecting(job.cancelled):
                await asyncio.sleep(0)  # others that ask just now are expected, too
                draft = await asyncio.to_thread(self._submit_text, value, options, job)
                if draft is not None:
                    await in_own_thread(partial(self._submit_media, draft, job))
                return job
        except asyncio.CancelledError:
            job.cancelled.set()  # the thread may still queue the job; it will be dropped there
            raise

    def _submit_text(
        self, value: Any, options: AskOptions, job: AnswerJob | CheckJob
    ) -> Draft | None:
        """Queue a job for a text; a request with media is only drafted."""
        tools = None if options.get("tool_choice") == "none" else options.get("tools")
        draft = drafted(value, policy=self._engine.policy, tools=tools)
        if draft.has_media:
            return draft
        self._queue(job, draft.request(), NOTHING_YET, wait=job.caller.wait)
        return None

    def _submit_media(self, draft: Draft, job: AnswerJob | CheckJob) -> None:
        """Decode a draft's media, judge its long videos, and queue the job for what is left."""
        doing = "requests with pictures or videos are read"
        with self._place(self._reads, job.caller, doing), patience(job.caller.still_waits):
            request = draft.request()
        self._engine.require_readable(request)
        if not request.in_windows:
            self._queue(job, request, NOTHING_YET, wait=job.caller.wait)
            return
        self._engine.worker.expects_no_more(job.cancelled)
        shown, floor = self._scanned(request, job.caller)
        self._queue(job, shown, floor, wait=True)

    def _scanned(self, request: Request, caller: Caller) -> tuple[Request, Floor]:
        """The request without its long videos, and what they scored."""
        try:
            with (
                self._place(self._scans, caller, "long videos are judged"),
                patience(caller.still_waits),
            ):
                return Scan(self._engine, caller).run(request)
        except RequestTimeoutError as late:
            raise RequestTimeoutError(
                f"{late}: its videos were still being judged; sample fewer frames (`video.fps` in "
                "the policy), or allow more time (`timeout`, `limits.timeout_s`)"
            ) from late

    def _queue(
        self, job: AnswerJob | CheckJob, request: Request, floor: Floor, *, wait: bool
    ) -> None:
        if isinstance(job, CheckJob) and job.answer is not None:
            said = Message(role="assistant", parts=(TextPart(job.answer),))
            request = replace(request, messages=(*request.messages, said))
        elif self._folds(job):
            job.folded = folded(request)
        self._engine.submit(job, request, floor, wait=wait)

    def _folds(self, job: AnswerJob | CheckJob) -> bool:
        policy = self._engine.policy
        return policy.fold_text if isinstance(job, CheckJob) else policy.fold_answers

    @contextmanager
    def _place(self, places: Places, caller: Caller, doing: str) -> Iterator[None]:
        """One of a bounded number of places; what is read takes memory of its own."""
        if not places.take(caller.client, timeout=caller.left_s() if caller.wait else 0.0):
            if caller.wait:
                raise RequestTimeoutError(LATE)
            raise QueueFullError(
                f"too many {doing}: the policy allows {places.places} at once, and one client its "
                "share of them; try again later or raise `limits.queue`",
                retry_after_s=self._engine.worker.drain_s(),
            )
        try:
            yield
        finally:
            places.give_back(caller.client)


class Places:
    """A bounded number of places; safe to share between threads."""

    def __init__(self, places: int) -> None:
        self.places = places
        self._held: Counter[str | None] = Counter()
        self._changed = threading.Condition()

    def take(self, client: str | None, *, timeout: float | None = 0.0) -> bool:
        """Take a place, within `timeout` s (None: however long it takes); false when none is free.

        A named client may hold three places for each that is free.
        """
        with self._changed:
            if not self._changed.wait_for(lambda: self._free_for(client), timeout):
                return False
            self._held[client] += 1
            return True

    def give_back(self, client: str | None) -> None:
        """Give a place back."""
        with self._changed:
            self._held[client] -= 1
            self._held += Counter()  # forgets who holds none
            self._changed.notify_all()

    def _free_for(self, client: str | None) -> bool:
        return within_share(client, self._held[client], self.places - self._held.total())


def _caught(function: Callable[[Any], T], value: Any) -> T | BaseException:
    """The result, or the error that was asked for in its place."""
    try:
        return function(value)
    except (
        Exception,
        GuardrailViolation,
    ) as error:  # the caller wants to see it beside the other answers
        return error


def _numbered(options: AskOptions, number: int) -> AskOptions:
    """The options of one of a list's requests: each has an id of its own."""
    if options.get("request_id") is None:
        return options
    return {**options, "request_id": f"{options['request_id']}-{number}"}


def _caller(
    options: AskOptions, limits: Limits, cancelled: threading.Event | None, *, wait: bool
) -> Caller:
    """Who asks.

    Raises:
        ConfigurationError: a timeout that is over before it begins, or an impossible name.
    """
    client, request_id = options.get("client"), options.get("request_id")
    for name, given in (("client", client), ("request_id", request_id)):
        if given is not None and not (isinstance(given, str) and 0 < len(given) <= _LONGEST_NAME):
            raise ConfigurationError(f"`{name}` is a text of 1 to {_LONGEST_NAME} characters")
    timeout = options.get("timeout")
    if timeout is not None and timeout <= 0:
        raise ConfigurationError(f"a timeout must be more than 0 s; got {timeout}")
    seconds = limits.timeout_s if timeout is None else timeout
    return Caller(
        client=client,
        request_id=request_id or uuid.uuid4().hex,
        deadline=None if seconds is None else time.monotonic() + seconds,
        cancelled=cancelled or threading.Event(),
        wait=wait,
    )


def _settings(options: GenerateOptions, limits: Limits) -> Settings:
    """How an answer is to be generated.

    Raises:
        ConfigurationError: the options contradict each other, or nobody knows one.
        LimitExceededError: the answer may get longer than the policy allows.
    """
    try:
        default = min(Settings.model_fields["max_new_tokens"].default, limits.new_tokens)
        how = {name: value for name, value in options.items() if name not in _ASK}
        settings = Settings.model_validate({"max_new_tokens": default} | how)
    except ValidationError as error:
        problems = "; ".join(_problem(found) for found in error.errors())
        raise ConfigurationError(f"these generation settings cannot hold: {problems}") from error
    if settings.max_new_tokens > limits.new_tokens:
        raise LimitExceededError(
            limit="new_tokens",
            allowed=limits.new_tokens,
            found=settings.max_new_tokens,
            what="the answer asked for",
        )
    return settings


def _problem(found: Any) -> str:
    """A validation error in words; what the settings themselves raised says it all."""
    own = found.get("ctx", {}).get("error")
    if not found["loc"]:  # of several settings together
        return str(own or found["msg"])
    named = f"{'.'.join(map(str, found['loc']))}={reprlib.repr(found['input'])}"
    return f"{named}: {own or found['msg']}"
