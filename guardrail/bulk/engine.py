"""Rows in, rows out, in order: several threads read and decode while the model's thread scores."""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TYPE_CHECKING

from guardrail.bulk.rows import has_failed, out_row
from guardrail.errors import ConfigurationError, DetectorError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from concurrent.futures import Future

    from guardrail.bulk.rows import Item, OutRow
    from guardrail.guard import Guard

MOST_FAILED = 100  # rows in a row that the detector may fail on before the run ends
_MOST_READERS = 8


def scored(
    guard: Guard,
    items: Iterable[Item],
    *,
    readers: int | None = None,
    most_failed: int = MOST_FAILED,
) -> Iterator[OutRow]:
    """A row out for every item, in order; memory holds two chunks of rows for each reader.

    `readers` are threads that read, decode and wait (None: as many as there are processors, 2 to
    8). Chunks are twice as long as the model's batches, so that its thread finds the next batch
    waiting. Nobody waits for one row alone, so the policy's `timeout_s` is multiplied by the rows
    that may be ahead of it.

    Raises:
        DetectorError: `most_failed` rows one after another had no score by the detector's fault.
        GuardrailError: an error that would meet every row, such as a missing extra.
    """
    threads = min(max(os.cpu_count() or 1, 2), _MOST_READERS) if readers is None else readers
    if threads < 1:
        raise ConfigurationError(f"at least one thread reads; got {readers}")
    scoring = _Scoring(guard, threads)
    failed = 0
    for row in scoring.run(items):
        failed = failed + 1 if has_failed(row) else 0
        if failed >= most_failed:
            raise DetectorError(
                f"{failed} rows one after another had no score, the last because "
                f"{row['error'] or 'the detector failed (see the log)'}; what was written before "
                "is kept. Find the cause and start again"
            )
        yield row


class _Scoring:
    def __init__(self, guard: Guard, threads: int) -> None:
        limits = guard.policy.limits
        self._guard, self._threads = guard, threads
        self._size = 2 * min(limits.batch, (limits.queue + 1) // 2)
        ahead = self._size * threads + limits.queue
        self._timeout = None if limits.timeout_s is None else limits.timeout_s * ahead

    def run(self, items: Iterable[Item]) -> Iterator[OutRow]:
        """The rows; on an error or an interrupt, readers end by themselves, unwaited for."""
        pool = ThreadPoolExecutor(self._threads, thread_name_prefix="guardrail-bulk")
        ended = False
        try:
            yield from self._in_order(pool, items)
            ended = True
        finally:
            pool.shutdown(wait=ended, cancel_futures=not ended)

    def _in_order(self, pool: ThreadPoolExecutor, items: Iterable[Item]) -> Iterator[OutRow]:
        running: deque[Future[list[OutRow]]] = deque()
        rest = iter(items)
        while chunk := list(islice(rest, self._size)):
            running.append(pool.submit(self._scored, chunk))
            if len(running) >= 2 * self._threads:
                yield from running.popleft().result()
        while running:
            yield from running.popleft().result()

    def _scored(self, chunk: Sequence[Item]) -> list[OutRow]:
        loaded = [item.load() for item in chunk]
        readable = [one.value for one in loaded if not isinstance(one.value, Exception)]
        verdicts = iter(
            self._guard.check_batch(readable, return_exceptions=True, timeout=self._timeout)
        )
        artefact_id = self._guard.artefact.artefact_id
        rows = []
        for item, (key, value) in zip(chunk, loaded, strict=True):
            outcome = value if isinstance(value, Exception) else next(verdicts)
            rows.append(out_row(item.number, key, outcome, artefact_id))
        return rows
