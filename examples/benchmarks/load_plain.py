"""The same model served plainly: the server's own app, with no guard in the way of an answer.

Two ways. `together` puts waiting requests in one batch, by the very worker that a guard uses.
`alone` is what a few lines around transformers do: one `generate` at a time, in turn.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import StreamingResponse
from transformers import GenerationConfig
from transformers.generation import BaseStreamer

from guardrail.inputs.messages import to_request
from guardrail.model.encode import Encoder, on_device
from guardrail.model.generate import RowControl, RowOutcome, generate_rows
from guardrail.model.load import LoadedModel
from guardrail.model.settings import Settings
from guardrail.online.answering import AnswerText
from guardrail.policy import Limits, Policy
from guardrail.server.schemas import ChatBody
from guardrail.types import Request as Asked
from guardrail.worker.jobs import Caller, Job
from guardrail.worker.worker import WorkerLease

LIMITS = Limits()


@dataclass(eq=False, slots=True, kw_only=True)
class PlainJob(Job[int]):
    """One chat on its way through the worker; its result is the number of tokens said."""

    asked: Asked
    tokens: int
    emit: Callable[[str], None]


class PlainAnswerer:
    """Answers streamed chats by a model alone (see `guardrail.server.service.Answerer`)."""

    routers: tuple[APIRouter, ...] = ()

    def __init__(self, loaded: LoadedModel, *, together: bool) -> None:
        self._loaded, self._encoder, self._together = loaded, Encoder(loaded), together
        self._lease, self._policy = WorkerLease(loaded.model), Policy(limits=LIMITS)
        self._line = ThreadPoolExecutor(1, thread_name_prefix="plain")
        router = APIRouter(prefix="/v1")
        self.chats = (router,)
        router.add_api_route(
            "/chat/completions", self.answer, methods=["POST"], response_model=None
        )

    async def answer(self, body: ChatBody) -> Response:
        """Stream an answer in the form that the guarded one has, less its verdict."""
        if not body.stream:
            raise ValueError("the plain server streams; ask with stream=true")
        loop, said = asyncio.get_running_loop(), asyncio.Queue[str | None]()

        def emit(chunk: str | None) -> None:
            loop.call_soon_threadsafe(said.put_nowait, chunk)

        cancelled = threading.Event()
        with self._lease.worker.expecting(cancelled):
            job = await asyncio.to_thread(self._queue, body, emit, cancelled)
        first = await said.get()
        events = _events(job, first, said, body.model)
        return StreamingResponse(events, media_type="text/event-stream")

    async def models(self) -> list[dict[str, object]]:
        """What `/v1/models` lists."""
        return [{"id": "guarded", "object": "model", "created": 0, "owned_by": "local"}]

    async def trouble(self) -> str | None:
        """Nothing stands in the way."""
        return None

    async def aclose(self) -> None:
        """End the threads."""
        self._line.shutdown(cancel_futures=True)
        self._lease.release()

    def _queue(
        self, body: Any, emit: Callable[[str | None], None], cancelled: threading.Event
    ) -> PlainJob:
        asked = to_request(body.messages, policy=self._policy)
        tokens = body.max_completion_tokens or body.max_tokens or 16
        job = PlainJob(
            asked=asked,
            tokens=tokens,
            emit=emit,
            run=self._run,
            owner=self,
            limits=LIMITS,
            caller=Caller(cancelled=cancelled),
            key=(asked.shape, tokens),
        )
        job.future.add_done_callback(lambda _done: emit(None))
        if self._together:
            self._lease.worker.submit(job)
        else:
            self._line.submit(self._run_alone, job)
        return job

    def _decode(self, ids: Sequence[int]) -> str:
        text = self._loaded.tokenizer.decode(
            list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return str(text)

    def _run(self, jobs: Sequence[PlainJob]) -> None:
        encoded = self._encoder.encode([job.asked for job in jobs])
        controls = [self._control(job) for job in jobs]
        settings = Settings(max_new_tokens=jobs[0].tokens, do_sample=False)
        generate_rows(self._loaded, encoded, None, settings, controls)

    def _control(self, job: PlainJob) -> RowControl:
        text = AnswerText(self._decode, emit=job.emit)

        def end(outcome: RowOutcome) -> None:
            text.end()
            job.settle(len(outcome.token_ids))

        return RowControl(cancelled=job.cancelled, on_token=text.take, on_end=end)

    def _run_alone(self, job: PlainJob) -> None:
        try:
            encoded = self._encoder.encode([job.asked])
            inputs = on_device(encoded, self._loaded.device, self._loaded.dtype)
            streamer = _Streamer(AnswerText(self._decode, emit=job.emit))
            model: Any = self._loaded.model
            config = GenerationConfig(
                max_new_tokens=job.tokens,
                do_sample=False,
                eos_token_id=model.generation_config.eos_token_id,
                pad_token_id=model.generation_config.pad_token_id,
            )
            model.generate(**inputs, generation_config=config, streamer=streamer)
            job.settle(streamer.tokens)
        except Exception as error:  # the border of the thread: its reader must hear of it
            job.fail(error)


class _Streamer(BaseStreamer):
    """Text as it grows; the first that is put are the prompt's tokens."""

    def __init__(self, text: AnswerText) -> None:
        self._text, self.tokens = text, -1

    def put(self, value: Any) -> None:
        """Take the next token."""
        self.tokens += 1
        if self.tokens:
            self._text.take(int(value[0]))

    def end(self) -> None:
        """Let the rest through."""
        self._text.end()


async def _events(
    job: PlainJob, chunk: str | None, said: asyncio.Queue[str | None], model: str
) -> AsyncIterator[bytes]:
    head = {"id": f"chatcmpl-{id(job)}", "object": "chat.completion.chunk", "model": model}
    head["created"] = str(int(time.time()))

    def event(choices: list[Any], **more: Any) -> bytes:
        return f"data: {json.dumps({**head, 'choices': choices, **more})}\n\n".encode()

    yield event([{"index": 0, "delta": {"role": "assistant", "content": ""}}])
    while chunk is not None:
        yield event([{"index": 0, "delta": {"content": chunk}, "finish_reason": None}])
        chunk = await said.get()
    tokens = job.future.result()
    yield event([{"index": 0, "delta": {}, "finish_reason": "length"}])
    yield event([], usage={"completion_tokens": tokens})
    yield b"data: [DONE]\n\n"
