"""What runs on the model's thread for one guard: batches in, verdicts and results out.

Before that: whether a request fits into the model.
"""

from __future__ import annotations

import json
import logging
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from guardrail.artefact.artefact import sampling_notes
from guardrail.decide.detector import NO_FLOOR, Detector
from guardrail.errors import LimitExceededError, UnsupportedContentError
from guardrail.model.decoder import context_length
from guardrail.model.encode import TEXT_ONLY, Encoded, Encoder
from guardrail.model.generate import check_rows, generate_rows
from guardrail.model.history import history_gaps
from guardrail.model.hooks import PromptHooks, check_layers
from guardrail.monitor.monitor import Monitor
from guardrail.online.answering import Answering, verdict_of
from guardrail.online.jobs import NOTHING_YET, AnswerJob, CheckJob, verdict_facts, who
from guardrail.policy.acting import enforced, on_outage, outranks_outage, stops
from guardrail.types import Modality, Request, Verdict, Where
from guardrail.worker.worker import WorkerLease

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from guardrail.artefact import Artefact
    from guardrail.audit import Audit
    from guardrail.model.load import LoadedModel
    from guardrail.model.prefill import Ruling
    from guardrail.model.settings import Settings
    from guardrail.online.jobs import Floor, Item
    from guardrail.policy import Limits, Policy, Thresholds
    from guardrail.worker.jobs import Caller

log = logging.getLogger("guardrail")


class Engine:
    """A model, its encoder, one artefact's detector and its hooks, under one policy."""

    def __init__(
        self, loaded: LoadedModel, artefact: Artefact, policy: Policy, audit: Audit | None
    ) -> None:
        self.loaded, self.artefact, self.policy, self._audit = loaded, artefact, policy, audit
        self.encoder, self.monitor = Encoder(loaded), Monitor(artefact)
        self._detector = Detector.from_artefact(artefact, policy)
        for gap in history_gaps(self.encoder):
            log.warning("what is read of a chat with this model: %s", gap)
        self._notes = tuple(sampling_notes(artefact, policy))  # told with the first video
        layers = check_layers(self._detector, loaded.model)
        self._context = context_length(loaded.model)
        self._hooks = PromptHooks(loaded.model, layers)
        self._lease = WorkerLease(loaded.model)
        self.worker = self._lease.worker

    def shutdown(self, *, wait_s: float = 0.0) -> None:
        """End this guard's jobs and leave the model as it was; safe to call twice."""
        self.worker.leave(self, timeout=wait_s)
        self._lease.release()
        self._hooks.remove()

    def answer_job(
        self, settings: Settings, caller: Caller, emit: Callable[[Item], None] | None = None
    ) -> AnswerJob:
        """A job for an answer to a request that is not read yet."""
        return AnswerJob(
            run=self._answer,
            owner=self,
            limits=self.policy.limits,
            caller=caller,
            settings=settings,
            emit=emit,
        )

    def check_job(
        self, caller: Caller, *, first_outage: Callable[[], bool] | None = None
    ) -> CheckJob:
        """A job for a verdict, with `first_outage` for one on a window, which goes on no record."""
        return CheckJob(
            run=self._check,
            owner=self,
            limits=self.policy.limits,
            quick=True,
            caller=caller,
            first_outage=first_outage,
        )

    def submit(
        self,
        job: AnswerJob | CheckJob,
        request: Request,
        floor: Floor = NOTHING_YET,
        *,
        wait: bool = False,
    ) -> None:
        """Queue a job, whose request has been read; see `ModelWorker.submit`."""
        job.request, job.floor, job.key = request, floor, self._key(job, request)
        self.worker.submit(job, wait=wait)

    def require_readable(self, request: Request) -> None:
        """Refuse, before the model runs, a video that this model or artefact cannot judge.

        Raises:
            UnsupportedContentError: the model reads no videos, or none were fitted.
            CalibrationError: the policy's rates are beyond what the calibration data supports.
        """
        if not request.videos:
            return
        if self.encoder.video_as is None:
            raise UnsupportedContentError(TEXT_ONLY)
        require_readable(request, self.artefact)
        if "video" not in self._detector.kinds:
            self.artefact.thresholds(Modality.VIDEO, self.policy)  # says why there are none
        notes, self._notes = self._notes, ()
        for note in notes:
            log.warning("%s", note)

    def outranks_outage(self, score: float) -> bool:
        """Whether a finite score of a video counts beside an outage in another part of it."""
        return outranks_outage(self._detector.action_for(score, "video"), self.policy)

    def ends_scan(self, score: float | None) -> bool:
        """Whether a video with this score, or an outage (None), gets no answer in any case."""
        policy, outage = self.policy, score is None
        asked = on_outage(policy) if score is None else self._detector.action_for(score, "video")
        return stops(enforced(asked, policy), policy.on_flag, outage=outage)

    @property
    def thresholds(self) -> dict[Modality, Thresholds]:
        """The operating point of each modality."""
        return dict(self._detector.thresholds)

    def record(self, verdict: Verdict | None, facts: Mapping[str, object]) -> None:
        """Count a verdict or outage and tell the audit sink; no trouble there changes an answer."""
        if facts.get("event") in ("verdict", "outage"):
            try:
                self.monitor.record(verdict)
            except Exception:  # a border: counting must not cost an answer
                log.exception("the monitor failed; the answer is not affected")
        if self._audit is None:
            return
        try:
            self._audit(verdict, facts)
        except Exception:  # a border: the sink is the user's code
            log.exception("the audit sink failed; the answer is not affected")

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
        return (id(self), common, request.shape, tools)

    def _answer(self, jobs: Sequence[AnswerJob]) -> None:
        """Answer a batch; of several jobs each is settled as soon as its own row has ended."""
        encoded = self._encode([job.request for job in jobs], new_tokens=1)
        answers = [
            Answering(
                job,
                self.loaded.tokenizer,
                self._detector,
                self.record,
                partial(with_words, self.loaded, encoded, row),
            )
            for row, job in enumerate(jobs)
        ]
        early = len(jobs) > 1  # a lone caller goes on only when the model is at rest again
        controls = [
            answer.control(self._room(length), settle_early=early)
            for answer, length in zip(answers, encoded.lengths, strict=True)
        ]
        longest = max((job.settings for job in jobs), key=lambda settings: settings.max_new_tokens)
        with self._outages(jobs, answers):
            outcomes = generate_rows(
                self.loaded,
                encoded,
                self._detector,
                longest,
                controls,
                policy=self.policy,
                hooks=self._hooks,
                floors=_scores([job.floor for job in jobs]),
            )
        if not early:
            answers[0].end(outcomes[0])

    @contextmanager
    def _outages(
        self, jobs: Sequence[AnswerJob | CheckJob], answers: Sequence[Answering] = ()
    ) -> Iterator[None]:
        """Put it on record when there is no decision at all; of a batch each job runs again."""
        try:
            yield
        except BaseException:  # whatever broke, the detector, the model or a hook of someone's
            judged = any(isinstance(job, AnswerJob) and job.verdict is not None for job in jobs)
            if len(jobs) == 1 and not judged and _first_outage(jobs[0]):
                self.record(None, {"event": "outage", **who(jobs[0])})
            for answer in answers:
                answer.broke(alone=len(jobs) == 1)
            raise

    def _room(self, prompt_tokens: int) -> int | None:
        """How many tokens fit behind a prompt into the model's context."""
        return None if self._context is None else self._context - prompt_tokens

    def _check(self, jobs: Sequence[CheckJob]) -> None:
        floors = self._floors(jobs)
        requests = [job.request for job in jobs]
        encoded, rulings = self._rulings(jobs, requests, floors)
        for row, (job, floor, ruling) in enumerate(zip(jobs, floors, rulings, strict=True)):
            said = partial(with_words, self.loaded, encoded, row)
            verdict = verdict_of(self._detector, job.request, ruling, floor, said=said)
            if job.first_outage is None:  # what a window is of goes on record as a whole
                self.record(verdict, verdict_facts(job))
            job.settle(verdict)

    def _floors(self, jobs: Sequence[CheckJob]) -> list[Floor]:
        """What the requests of a batch score at least, once their folded copies are judged."""
        floors = [job.floor for job in jobs]
        copies = {n: job.folded for n, job in enumerate(jobs) if job.folded is not None}
        if copies:
            _, rulings = self._rulings(jobs, [*copies.values()], [floors[n] for n in copies])
            for (n, copy), ruling in zip(copies.items(), rulings, strict=True):
                floors[n] = floors[n].raised(verdict_of(self._detector, copy, ruling).score)
        return floors

    def _rulings(
        self, jobs: Sequence[CheckJob], requests: Sequence[Request], floors: Sequence[Floor]
    ) -> tuple[Encoded, list[Ruling]]:
        """Judge what a batch of jobs asks about, or a part of it, in one pass."""
        encoded = self._encode(requests, new_tokens=0)
        with self._outages(jobs):
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
        require_room(encoded, self.policy.limits, self._context, new_tokens=new_tokens)
        return encoded


def with_words(loaded: LoadedModel, encoded: Encoded, row: int, where: Where) -> Where:
    """A window with the words of its tokens; what is no text says nothing."""
    if where.start is None or where.stop is None:
        return where
    ids = encoded.inputs["input_ids"][row, encoded.prompt_len - encoded.lengths[row] :]
    said = loaded.tokenizer.decode(ids[where.start : where.stop].tolist(), skip_special_tokens=True)
    return replace(where, words=str(said))


def _scores(floors: Sequence[Floor]) -> tuple[float, ...]:
    """The rows' floors; none at all where no row has any, as most requests have none."""
    scores = tuple(floor.score for floor in floors)
    return () if all(score == NO_FLOOR for score in scores) else scores


def _first_outage(job: AnswerJob | CheckJob) -> bool:
    """Whether an outage of this job is to go on record; of a long video's windows one does."""
    return not isinstance(job, CheckJob) or job.first_outage is None or job.first_outage()


def require_readable(request: Request, artefact: Artefact) -> None:
    """Refuse a video that the artefact has no offset for.

    Raises:
        UnsupportedContentError: saying what to do.
    """
    if request.videos and not artefact.reads_videos:
        raise UnsupportedContentError(
            f"{artefact.artefact_id} was fitted without video, so there is no score for one; fit "
            "again (`guardrail fit`) with this release"
        )


def require_room(
    encoded: Encoded, limits: Limits, context: int | None, *, new_tokens: int = 0
) -> None:
    """Refuse a batch with a prompt too long for the policy, or for a model of `context` positions.

    Raises:
        LimitExceededError: naming the longest prompt.
    """
    allowed, what = limits.prompt_tokens, "the prompt"
    if context is not None and context - new_tokens < allowed:
        allowed = context - new_tokens
        what = f"the prompt (for a model of {context} positions)"
    longest = max(encoded.lengths)
    if longest > allowed and "video" in encoded.kinds:
        smaller = "smaller `video.window` and `video.answer_frames`, or frames of fewer pixels"
        what += f", with a video in it ({smaller} help),"
    if longest > allowed:
        raise LimitExceededError(limit="prompt_tokens", allowed=allowed, found=longest, what=what)
