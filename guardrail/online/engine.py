"""What runs on the model's thread for one guard: batches in, verdicts and results out.

Before that: whether a request fits into the model.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from guardrail.decide.answers import GivenAnswers, Watching, answer_verdict, heard_in
from guardrail.decide.detector import NO_FLOOR
from guardrail.errors import LimitExceededError
from guardrail.model.decoder import context_length
from guardrail.model.fingerprint import fingerprint
from guardrail.model.generate import check_rows, generate_rows
from guardrail.model.history import answered
from guardrail.model.hooks import PromptHooks, check_layers
from guardrail.online.answering import Answering, verdict_of
from guardrail.online.core import Core
from guardrail.online.jobs import AnswerJob, CheckJob, verdict_facts, who
from guardrail.worker.worker import WorkerLease

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.artefact import Artefact
    from guardrail.artefact.header import Fingerprint
    from guardrail.audit import Audit
    from guardrail.model.encode import Encoded
    from guardrail.model.load import LoadedModel
    from guardrail.model.prefill import Ruling
    from guardrail.online.jobs import Floor
    from guardrail.policy import Limits, Policy
    from guardrail.types import Request, Where


class Engine(Core):
    """A model in transformers and its hooks; requests of a like kind are answered together."""

    def __init__(
        self, loaded: LoadedModel, artefact: Artefact, policy: Policy, audit: Audit | None
    ) -> None:
        super().__init__(loaded, artefact, policy, audit)
        self.loaded = loaded
        layers = {*check_layers(self._detector, loaded.model)}
        if self._detector.answers is not None:
            layers |= {*check_layers(GivenAnswers(self._detector), loaded.model)}
        self._hooks = PromptHooks(loaded.model, sorted(layers))
        self._lease = WorkerLease(loaded.model)
        self.worker = self._lease.worker

    @property
    def fingerprint(self) -> Fingerprint:
        """See `Core`."""
        return fingerprint(self.loaded)

    @property
    def context(self) -> int | None:
        """See `Core`."""
        return context_length(self.loaded.model)

    @property
    def generation_config(self) -> Any:
        """See `Core`."""
        return self.loaded.model.generation_config

    def under(self, policy: Policy, audit: Audit | None) -> Engine:
        """See `Core`."""
        return Engine(self.loaded, self.artefact, policy, audit)

    def shutdown(self, *, wait_s: float = 0.0) -> None:
        """End this guard's jobs and leave the model as it was; safe to call twice."""
        self.worker.leave(self, timeout=wait_s)
        self._lease.release()
        self._hooks.remove()

    def _key(self, job: AnswerJob | CheckJob, request: Request) -> object:
        """What jobs of one batch have equal; None: it runs alone, as sampled answers do."""
        if not self.encoder.can_batch:
            return None
        common = None
        if isinstance(job, AnswerJob):
            common = job.settings.in_common(self.loaded.model)
            if common is None:
                return None
        tools = json.dumps(request.tools) if request.tools else None
        given = isinstance(job, CheckJob) and job.answer is not None
        return (id(self), common, given, request.shape, tools)

    def run_answers(self, jobs: Sequence[AnswerJob]) -> None:
        """Answer a batch; of several jobs each is settled as soon as its own row has ended."""
        for job, floor in zip(jobs, self._floors(jobs), strict=True):
            job.floor = floor
        encoded = self._encode([job.request for job in jobs], new_tokens=1)
        answers = [
            Answering(
                job,
                self.loaded.tokenizer,
                self._detector,
                self.record,
                partial(with_words, self.loaded.tokenizer, encoded.ids(row)),
            )
            for row, job in enumerate(jobs)
        ]
        early = len(jobs) > 1  # a lone caller goes on only when the model is at rest again
        controls = [
            answer.control(self._room(length), settle_early=early)
            for answer, length in zip(answers, encoded.lengths, strict=True)
        ]
        longest = max((job.settings for job in jobs), key=lambda settings: settings.max_new_tokens)
        with self.outages(jobs, answers):
            outcomes = generate_rows(
                self.loaded,
                encoded,
                self._detector,
                longest,
                controls,
                policy=self.policy,
                hooks=self._hooks,
                floors=_scores([job.floor for job in jobs]),
                watch=None if self._detector.answers is None else Watching(self._detector.answers),
            )
        if not early:
            answers[0].end(outcomes[0])

    def _room(self, prompt_tokens: int) -> int | None:
        """How many tokens fit behind a prompt into the model's context."""
        context = self.context
        return None if context is None else context - prompt_tokens

    def run_checks(self, jobs: Sequence[CheckJob]) -> None:
        """Judge a batch, and what its requests are in plain letters first."""
        floors = self._floors(jobs)
        requests = [job.request for job in jobs]
        encoded, rulings = self._rulings(jobs, requests, floors)
        for row, (job, floor, ruling) in enumerate(zip(jobs, floors, rulings, strict=True)):
            said = partial(with_words, self.loaded.tokenizer, encoded.ids(row))
            verdict = verdict_of(self._detector, job.request, ruling, floor, said=said)
            if job.first_outage is None:  # what a window is of goes on record as a whole
                self.record(verdict, verdict_facts(job))
            job.settle(verdict)

    def run_given(self, jobs: Sequence[CheckJob]) -> None:
        """Judge answers that others have given, the last message of each chat."""
        encoded = answered(self.encoder, [job.request for job in jobs])
        self._require_room(encoded, new_tokens=0)
        with self.outages(jobs):
            detector = GivenAnswers(self._detector)
            rulings = check_rows(self.loaded, encoded, detector, hooks=self._hooks)
        for job, ruling, parts in zip(jobs, rulings, encoded.parts, strict=True):
            found: Any = None if ruling.failed else ruling.found
            heard = heard_in(found, parts)
            message = len(job.request.messages) - 1
            asked = self._detector.verdict(None, 0, job.request.offset_kind)
            verdict = answer_verdict(self._detector, heard, asked, message)
            self.record(verdict, {"event": "watched", **who(job)})
            job.settle(verdict)

    def _floors(self, jobs: Sequence[AnswerJob | CheckJob]) -> list[Floor]:
        """What the requests of a batch score at least, once their folded copies are judged."""
        floors = [job.floor for job in jobs]
        copies = {n: job.folded for n, job in enumerate(jobs) if job.folded is not None}
        if copies:
            _, rulings = self._rulings(jobs, [*copies.values()], [floors[n] for n in copies])
            for (n, copy), ruling in zip(copies.items(), rulings, strict=True):
                floors[n] = floors[n].raised(verdict_of(self._detector, copy, ruling).score)
        return floors

    def _rulings(
        self,
        jobs: Sequence[AnswerJob | CheckJob],
        requests: Sequence[Request],
        floors: Sequence[Floor],
    ) -> tuple[Encoded, list[Ruling]]:
        """Judge what a batch of jobs asks about, or a part of it, in one pass."""
        encoded = self._encode(requests, new_tokens=0)
        with self.outages(jobs):
            return encoded, check_rows(
                self.loaded,
                encoded,
                self._detector,
                policy=self.policy,
                hooks=self._hooks,
                floors=_scores(floors),
            )

    def _encode(self, requests: Sequence[Request], *, new_tokens: int) -> Encoded:
        """The batch's inputs; a prompt that is too long is refused before the model sees it."""
        encoded = self.encoder.encode(requests)
        self._require_room(encoded, new_tokens=new_tokens)
        return encoded

    def _require_room(self, encoded: Encoded, *, new_tokens: int) -> None:
        videos, limits = "video" in encoded.kinds, self.policy.limits
        require_room(encoded.lengths, limits, self.context, videos=videos, new_tokens=new_tokens)


def with_words(tokenizer: Any, ids: Sequence[int], where: Where) -> Where:
    """A window with the words of its tokens, of a prompt's; what is no text says nothing."""
    if where.start is None or where.stop is None:
        return where
    said = tokenizer.decode(list(ids[where.start : where.stop]), skip_special_tokens=True)
    return replace(where, words=str(said))


def _scores(floors: Sequence[Floor]) -> tuple[float, ...]:
    """The rows' floors; none at all where no row has any, as most requests have none."""
    scores = tuple(floor.score for floor in floors)
    return () if all(score == NO_FLOOR for score in scores) else scores


def require_room(
    lengths: Sequence[int],
    limits: Limits,
    context: int | None,
    *,
    videos: bool = False,
    new_tokens: int = 0,
) -> None:
    """Refuse prompts too long for the policy, or for a model of `context` positions.

    Raises:
        LimitExceededError: naming the longest prompt.
    """
    allowed, what = limits.prompt_tokens, "the prompt"
    if context is not None and context - new_tokens < allowed:
        allowed = context - new_tokens
        what = f"the prompt (for a model of {context} positions)"
    longest = max(lengths)
    if longest > allowed and videos:
        smaller = "smaller `video.window` and `video.answer_frames`, or frames of fewer pixels"
        what += f", with a video in it ({smaller} help),"
    if longest > allowed:
        raise LimitExceededError(limit="prompt_tokens", allowed=allowed, found=longest, what=what)
