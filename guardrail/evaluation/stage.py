"""One thing asked about every input: out of the cache where it is known, else of the model."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Generic, TypeVar

from guardrail.evaluation.inputs import INPUT_ERRORS
from guardrail.evaluation.schema import Timing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from guardrail.evaluation.cache import Cache
    from guardrail.evaluation.inputs import Input, Troubles
    from guardrail.fit.collect import Progress
    from guardrail.policy import Policy
    from guardrail.types import Request

log = logging.getLogger(__name__)

T = TypeVar("T")
_READ_BACK = 64  # cached values in memory at once


@dataclass(frozen=True, kw_only=True)
class Stage(Generic[T]):
    """What is asked, and how an answer is kept.

    `ask` takes requests that may share a batch and gives a value, or an error, for each; `unpack`
    raises ValueError for bytes that are no such value. `use` gets the values as they come.
    """

    name: str
    batch: int
    key: Callable[[str], str]
    ask: Callable[[Sequence[Request]], Sequence[T | Exception]]
    pack: Callable[[T], bytes]
    unpack: Callable[[bytes], T]
    use: Callable[[Input, T], None]


@dataclass(frozen=True)
class Context:
    """What all stages of one evaluation share."""

    cache: Cache
    policy: Policy
    troubles: Troubles
    progress: Progress


def run_stage(stage: Stage[T], inputs: Sequence[Input], context: Context) -> Timing:
    """Give `use` every input's value; equal inputs are asked once.

    Raises:
        DatasetError: an input failed, and may not be skipped.
    """
    started = time.perf_counter()
    alike: dict[str, list[Input]] = {}
    for one in inputs:
        alike.setdefault(one.digest, []).append(one)
    done = cached = 0

    def used(digest: str, value: T) -> None:
        nonlocal done
        for one in alike[digest]:
            stage.use(one, value)
        done += len(alike[digest])
        context.progress(stage.name, done, len(inputs))

    missing = []
    for digest, value in _known(stage, list(alike), context.cache):
        if value is None:
            missing.append(digest)
        else:
            cached += len(alike[digest])
            used(digest, value)
    for batch in _batches([alike[digest][0] for digest in missing], stage.batch):
        values = _asked(stage, batch, alike, context)
        context.cache.put({stage.key(one.digest): stage.pack(value) for one, value in values})
        for one, value in values:
            used(one.digest, value)
    seconds = time.perf_counter() - started
    return Timing(stage=stage.name, seconds=seconds, n=len(inputs), cached=cached)


def _known(stage: Stage[T], digests: Sequence[str], cache: Cache) -> Iterator[tuple[str, T | None]]:
    """Each digest with its value, or None where it has to be asked."""
    for start in range(0, len(digests), _READ_BACK):
        part = digests[start : start + _READ_BACK]
        found = cache.get([stage.key(digest) for digest in part])
        for digest in part:
            data = found.get(stage.key(digest))
            try:
                yield digest, None if data is None else stage.unpack(data)
            except (ValueError, KeyError, TypeError) as error:
                log.warning("%s: a kept value is damaged (%s); read again", stage.name, error)
                yield digest, None


def _batches(inputs: Sequence[Input], size: int) -> Iterator[list[Input]]:
    """Inputs that may share a batch, sorted by length so that little is padded."""
    groups: dict[tuple[object, str], list[Input]] = {}
    for one in inputs:
        groups.setdefault(one.group, []).append(one)
    for group in groups.values():
        group.sort(key=lambda one: one.length)
        for start in range(0, len(group), size):
            yield group[start : start + size]


def _asked(
    stage: Stage[T],
    batch: Sequence[Input],
    alike: Mapping[str, Sequence[Input]],
    context: Context,
) -> list[tuple[Input, T]]:
    """The values of a batch; what fails is noted for every input that is alike."""
    values = _tried(stage, [partial(one.item.request, context.policy) for one in batch])
    found = []
    for one, value in zip(batch, values, strict=True):
        if isinstance(value, BaseException):
            for same in alike[one.digest]:
                context.troubles.note(same.item, stage.name, value)
        else:
            found.append((one, value))
    return found


def _tried(stage: Stage[T], readers: Sequence[Callable[[], Request]]) -> list[T | BaseException]:
    """Ask a batch; if it fails as a whole, each input alone."""
    try:
        return list(stage.ask([read() for read in readers]))
    except INPUT_ERRORS as error:
        if len(readers) == 1:
            return [error]
        log.warning("%s: a batch of %d failed; each is asked alone", stage.name, len(readers))
        return [value for reader in readers for value in _tried(stage, [reader])]
