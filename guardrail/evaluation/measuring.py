"""Everything an evaluation asks of the model, stage by stage; what is known is not asked again."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from guardrail import __version__
from guardrail.artefact.file import tensor_digest
from guardrail.errors import DetectorError
from guardrail.evaluation import answers, scores
from guardrail.evaluation.answers import Row
from guardrail.evaluation.cache import as_json, key_of
from guardrail.evaluation.inputs import INPUT_ERRORS
from guardrail.evaluation.judge import judged
from guardrail.evaluation.schema import Timing
from guardrail.fit.collect import VERSIONS
from guardrail.model.fingerprint import fingerprint
from guardrail.policy.acting import enforces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from guardrail.evaluation.cache import Cache
    from guardrail.evaluation.inputs import Input, Troubles
    from guardrail.evaluation.judge import Judge
    from guardrail.fit.collect import Progress
    from guardrail.guard import Guard
    from guardrail.policy import Policy
    from guardrail.types import Request

log = logging.getLogger(__name__)
T = TypeVar("T")
_READOUTS = ("readout_", "window_")
_READ_BACK = 64  # cached values in memory at once


@dataclass
class Measuring:
    """One guard, asked about many inputs; `timings` grow with each stage."""

    guard: Guard
    context: Context
    batch_size: int
    timings: list[Timing] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Name the model and the guard, which the cache's keys hang on."""
        self.keys = Keys.of(self.guard)
        self.scorer = scores.Scorer(self.guard.artefact, self.guard.policy)

    def rows(self, inputs: Sequence[Input]) -> list[Row]:
        """One prefill of each input: its scores. What was read itself is not kept here."""
        loaded, policy = self.guard.loaded, self.guard.policy
        encoder = answers.BoundedEncoder(loaded, policy.limits)
        reader = scores.Reader(loaded, encoder, self.scorer.detector, batch_size=self.batch_size)
        found: dict[str, scores.ItemScores] = {}

        def use(one: Input, read: scores.Read) -> None:
            try:
                found[one.item.id] = self.scorer(read, one.kind)
            except DetectorError as error:
                self.context.troubles.note(one.item, "scores", error)

        self._run(
            Stage(
                name="scores",
                batch=self.batch_size,
                key=self.keys.read,
                ask=lambda requests: reader(requests, policy.video),
                pack=lambda read: scores.packed(read, loaded.dtype),
                unpack=lambda data: scores.unpacked(data, self.scorer.shape),
                use=use,
            ),
            inputs,
        )
        return [Row(input=one, scores=found[one.item.id]) for one in inputs if one.item.id in found]

    def answered(self, rows: Sequence[Row], new_tokens: int) -> list[Row]:
        """The rows that could be answered both ways, with their answers."""
        plain: dict[str, answers.Answer] = {}
        guarded: dict[str, answers.GuardedAnswer] = {}
        settings = f"greedy, {new_tokens} tokens"
        shadow = not enforces(self.guard.policy)
        self._run(
            Stage(
                name="plain answers",
                batch=self.batch_size,
                key=lambda digest: self.keys.plain(digest, settings),
                ask=answers.PlainAnswers(self.guard, new_tokens),
                pack=answers.packed,
                unpack=answers.plain_from,
                use=lambda one, answer: plain.update({one.item.id: answer}),
            ),
            [row.input for row in rows],
        )
        self._run(
            Stage(
                name="guarded answers",
                batch=4 * self.guard.policy.limits.batch,  # the guard makes its own batches of them
                key=lambda digest: self.keys.guarded(digest, settings),
                ask=answers.GuardedAnswers(self.guard, new_tokens),
                pack=answers.packed,
                unpack=answers.guarded_from,
                use=lambda one, answer: guarded.update({one.item.id: answer}),
            ),
            [row.input for row in rows if row.id in plain],
        )
        return [
            replace(row, plain=plain[row.id], guarded=guarded[row.id], shadow=shadow)
            for row in rows
            if row.id in guarded
        ]

    def divergence(self, rows: Sequence[Row]) -> dict[str, float]:
        """First-token divergence of the harmless inputs it is measured on, by id."""
        found: dict[str, float] = {}
        loaded, limits = self.guard.loaded, self.guard.policy.limits
        encoder = answers.BoundedEncoder(loaded, limits, new_tokens=1)
        known = {row.input.digest: row.score for row in rows}
        self._run(
            Stage(
                name="divergence",
                batch=self.batch_size,
                key=self.keys.kl,
                ask=answers.Divergence(loaded, encoder, self.scorer.detector, known),
                pack=lambda value: json.dumps(value).encode(),
                unpack=answers.divergence_from,
                use=lambda one, value: found.update({one.item.id: value}),
            ),
            [row.input for row in answers.to_measure(rows)],
        )
        return found

    def judged(self, rows: Sequence[Row], judge: Judge) -> list[Row]:
        """The rows with what the judge says; what the guard flagged in fact is not asked about."""
        started = time.perf_counter()
        both = [(row.input.item.text, *row.answers) for row in rows]
        pairs = [(prompt, plain.text) for prompt, plain, _ in both]
        pairs += [(prompt, guarded.text) for prompt, _, guarded in both if not guarded.flagged]
        prompts, texts = [prompt for prompt, _ in pairs], [text for _, text in pairs]
        said, known = judged(
            judge, prompts, texts, cache=self.context.cache, progress=self.context.progress
        )
        self.timings.append(timed("judging", started, len(pairs), known))
        plain, guarded = said[: len(rows)], iter(said[len(rows) :])
        return [
            replace(
                row,
                plain_refused=refused,
                guarded_refused=row.answers[1].flagged or next(guarded),
            )
            for row, refused in zip(rows, plain, strict=True)
        ]

    def _run(self, stage: Stage[T], inputs: Sequence[Input]) -> None:
        self.timings.append(run_stage(stage, inputs, self.context))


@dataclass(frozen=True)
class Keys:
    """Keys of one model and one guard on it, from the digest of a request.

    `model` is the fingerprint, the versions that run it, dtype and kind of device; `guard` the
    artefact, the policy and this package's own version, which read and edit by them; `generation`
    the model's own generation config, which answers follow where an evaluation says nothing;
    `reader` what of the guard readings hang on: readouts, whom it judges, and the version, so that
    other thresholds and edits ask for none.
    """

    model: str
    guard: str
    generation: str = ""
    reader: str = ""

    @classmethod
    def of(cls, guard: Guard) -> Keys:
        """The keys of a guard and its model as they are now."""
        loaded = guard.loaded
        about = {
            "fingerprint": fingerprint(loaded).model_dump(mode="json"),
            "versions": VERSIONS,
            "dtype": str(loaded.model.dtype),
            "device": loaded.device.type,
        }
        rules = {
            "artefact": guard.artefact.artefact_id,
            "policy": plain_policy(guard.policy),
            "version": __version__,
        }
        generation = loaded.model.generation_config.to_dict()
        read = {n: t for n, t in guard.artefact.tensors.items() if n.startswith(_READOUTS)}
        fields = {"readout", "windows", "recentring"}
        reads = {
            "tensors": tensor_digest(read),
            "header": guard.artefact.header.model_dump(mode="json", include=fields),
            "judge": sorted(guard.policy.judge),
            "version": __version__,
        }
        return cls(
            as_json(about),
            as_json(rules),
            json.dumps(generation, sort_keys=True, default=str),
            as_json(reads),
        )

    def read(self, digest: str) -> str:
        """Of what is read in one prefill: whatever the thresholds are."""
        return key_of("read", self.model, self.reader, digest)

    def plain(self, digest: str, settings: str) -> str:
        """Of the model's own answer."""
        return key_of("plain", self.model, self.generation, settings, digest)

    def guarded(self, digest: str, settings: str) -> str:
        """Of the answer behind the guard."""
        return key_of("guarded", self.model, self.generation, self.guard, settings, digest)

    def kl(self, digest: str) -> str:
        """Of the divergence at the first token."""
        return key_of("kl", self.model, self.guard, digest)


def plain_policy(policy: Policy) -> dict[str, Any]:
    """A policy as JSON values; its sets, which have no order of their own, sorted."""
    plain: dict[str, Any] = policy.model_dump(mode="json")
    return {name: sorted(v) if isinstance(v, list) else v for name, v in plain.items()}


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
    return timed(stage.name, started, len(inputs), cached)


def timed(stage: str, started: float, n: int, cached: int = 0) -> Timing:
    """What a stage took that began at `started` of `time.perf_counter`."""
    return Timing(stage=stage, seconds=time.perf_counter() - started, n=n, cached=cached)


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
