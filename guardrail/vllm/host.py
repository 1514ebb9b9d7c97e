"""vLLM's engine in front of which a guard asks: an event loop of its own, and the queue before it.

The engine runs many requests at once, so the queue's thread hands each on as soon as there is
room; what waits is in the queue, where clients take turns.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardrail.errors import (
    ConfigurationError,
    ModelError,
    ModelLoadError,
    RequestCancelledError,
    RequestTimeoutError,
    UnsupportedContentError,
)
from guardrail.extras import require
from guardrail.model.load import Processing, load_processor
from guardrail.vllm.options import engine_options
from guardrail.worker.jobs import LATE, told
from guardrail.worker.worker import ModelWorker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from concurrent.futures import Future

    from guardrail.artefact import Artefact
    from guardrail.model.encode import Prompt
    from guardrail.policy import Policy
    from guardrail.vllm.judge import Asked
    from guardrail.worker.jobs import Job

_END_S = 15.0
_RULED = (
    "mode",
    "actions",
    "thresholds",
    "steer_rate",
    "flag_rate",
    "on_flag",
    "fail",
    "judge",
    "watch",
    "fold_answers",
)


class VllmModel(Processing):
    """A model for vLLM to run with the guard inside; it is started for the first guard on it.

    The last of its users to let go of it ends the engine; who makes it is the first. All its guards
    have the artefact and the rules of the first one: the engine's processes hold them.
    """

    worker: HostWorker
    context: int  # positions

    def __init__(
        self,
        source: str | Path,
        *,
        allow_mismatch: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Read what feeds the model.

        Args:
            source: a folder, or a name on the hub.
            allow_mismatch: run another model than the artefact was fitted on.
            options: vLLM's engine arguments, by their names in Python.

        Raises:
            MissingExtraError: vLLM is not installed.
            ModelLoadError: a part of the model is missing.
        """
        require("vllm")
        self.source, self._options = str(source), dict(options or {})
        remote = bool(self._options.get("trust_remote_code"))
        self.processor, self.generation_config = load_processor(
            source, revision=self._options.get("revision"), trust_remote_code=remote
        )
        self._allow_mismatch = allow_mismatch
        self._users, self._lock = 1, threading.Lock()
        self._started: tuple[Artefact, Policy] | None = None

    def run(self, artefact: Artefact, policy: Policy) -> None:
        """Start vLLM under an artefact and rules, or see that it runs under these.

        Raises:
            ModelLoadError: vLLM did not start; its own words are in the log.
            ConfigurationError: it runs under others.
        """
        with self._lock:
            if self._started is None:
                self._start(artefact, policy)
                self._started = (artefact, policy)
        fitted, rules = self._started
        differs = [n for n in _RULED if getattr(policy, n) != getattr(rules, n)]
        if artefact.artefact_id != fitted.artefact_id:
            differs = [f"the artefact ({artefact.artefact_id})", *differs]
        if differs:
            raise ConfigurationError(
                f"vLLM judges by what it was started with ({fitted.artefact_id}); start it again "
                f"for other values of: {', '.join(differs)}"
            )

    def trouble(self) -> str | None:
        """Why nothing can be answered any more; None when it can."""
        return "vLLM's engine has ended; start the server again" if self._engine.errored else None

    def _start(self, artefact: Artefact, policy: Policy) -> None:
        os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")  # its lines in the log's own form
        self._files = tempfile.TemporaryDirectory(prefix="guardrail-")
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="guardrail-vllm", daemon=True)
        self._thread.start()
        path = artefact.save(Path(self._files.name) / "model.guard.safetensors")
        inside = engine_options(path, policy, allow_mismatch=self._allow_mismatch, asked=True)
        try:
            self._engine = self._call(_started(self.source, self._options | inside)).result()
        except BaseException as error:
            self._end()
            if not isinstance(error, Exception):  # Ctrl-C, say
                raise
            raise ModelLoadError(
                f"vLLM did not start with {self.source}: {error}; see its log above"
            ) from error
        config: Any = self._engine.vllm_config
        self.context = int(config.model_config.max_model_len)
        self.worker = HostWorker(int(config.scheduler_config.max_num_seqs), self._loop)

    def lease(self) -> None:
        """One more user."""
        with self._lock:
            self._users += 1

    def release(self) -> None:
        """One user less; the last one ends the engine."""
        with self._lock:
            self._users -= 1
            last = self._users == 0
        if last and self._started is not None:
            self.worker.stop()
            self._call(_shut(self._engine)).result(2 * _END_S)
            self._end()

    async def rendered(self, prompt: Prompt) -> Any:
        """A prompt as the engine takes it, its pictures in their places.

        Raises:
            UnsupportedContentError: the engine's processor refuses it.
        """
        given: dict[str, Any] = {"prompt_token_ids": prompt.ids}
        if prompt.pictures:
            given["multi_modal_data"] = {"image": list(prompt.pictures)}
        try:
            (found,) = await self._engine.renderer.render_cmpl_async([given])
        except Exception as error:  # processors refuse in their own ways
            raise UnsupportedContentError(f"vLLM cannot take this request: {error}") from error
        return found

    async def generate(
        self, prompt: Any, settings: Any, asked: Asked, request_id: str
    ) -> AsyncGenerator[Any, None]:
        """Outputs of one request, the verdict with each; closing this aborts it.

        Raises:
            ModelError: the engine failed.
        """
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        settings.extra_args = asked.extra()
        outputs = self._engine.generate(prompt, settings, request_id)
        try:
            async for output in outputs:
                yield output
        except (EngineDeadError, EngineGenerateError) as error:
            raise ModelError(f"vLLM failed on a request: {error}") from error
        finally:
            await outputs.aclose()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _call(self, task: Any) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(task, self._loop)

    def _end(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_END_S)
        self._loop.close()
        self._files.cleanup()


async def _started(source: str, options: dict[str, Any]) -> Any:
    from vllm import AsyncEngineArgs
    from vllm.v1.engine.async_llm import AsyncLLM

    return AsyncLLM.from_engine_args(AsyncEngineArgs(model=source, **options))


async def _shut(engine: Any) -> None:
    engine.shutdown(timeout=_END_S)


class HostWorker(ModelWorker):
    """The queue in front of an engine that runs `room` requests at once on an event loop."""

    def __init__(self, room: int, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self._room, self._loop_of = room, loop
        self._tasks: dict[Job[Any], asyncio.Task[None]] = {}  # the loop's own

    def _work(self) -> bool:
        """Hand the next job on; false when there will be none."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._has_next())
            job = None if self._stopped else self._waiting.next()
            if job is None:
                return False
            self._running.append(job)
            self._waiting.take(job, leads=True)
            self._changed.notify_all()
        self._loop_of.call_soon_threadsafe(self._begin, job)
        return True

    def _has_next(self) -> bool:
        return len(self._waiting) > 0 and len(self._running) < self._room

    def _begin(self, job: Job[Any]) -> None:
        task = self._tasks[job] = self._loop_of.create_task(self._run(job))
        task.add_done_callback(lambda _: self._ended(job))

    async def _run(self, job: Job[Any]) -> None:
        try:
            if job.start():
                async with asyncio.timeout(job.caller.left_s()):
                    await job.run((job,))
        except TimeoutError:
            job.fail(RequestTimeoutError(LATE))
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # the border of the loop: it must outlive any request
            job.fail(told(error))

    def _ended(self, job: Job[Any]) -> None:
        self._tasks.pop(job, None)
        job.fail(RequestCancelledError("the request was given up"))  # if nobody settled it
        with self._changed:
            self._throughput.ran(len(self._running), job.running_s)
            self._running.remove(job)
            self._changed.notify_all()

    def _end(self, job: Job[Any]) -> None:
        super()._end(job)
        with suppress(RuntimeError):  # the loop is closed
            self._loop_of.call_soon_threadsafe(self._cancel, job)

    def _cancel(self, job: Job[Any]) -> None:
        if (task := self._tasks.get(job)) is not None:
            task.cancel()
