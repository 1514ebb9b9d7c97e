"""A guard but for its model: the detector under a policy, jobs, and what goes on record."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from guardrail.artefact.artefact import sampling_notes
from guardrail.decide.detector import Detector
from guardrail.errors import UnsupportedContentError
from guardrail.model.encode import TEXT_ONLY, Encoder
from guardrail.model.history import history_gaps
from guardrail.model.settings import ends
from guardrail.monitor.monitor import Monitor
from guardrail.online.jobs import NOTHING_YET, AnswerJob, CheckJob, who
from guardrail.policy.acting import enforced, on_outage, outranks_outage, stops
from guardrail.types import Modality, Request, Verdict

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from typing import Self

    from guardrail.artefact import Artefact
    from guardrail.artefact.header import Fingerprint
    from guardrail.audit import Audit
    from guardrail.model.constrained import Grammar
    from guardrail.model.load import Processing
    from guardrail.model.settings import Settings
    from guardrail.online.answering import Answering
    from guardrail.online.jobs import Floor, Item
    from guardrail.policy import Policy, Thresholds
    from guardrail.worker.jobs import Caller
    from guardrail.worker.worker import ModelWorker

log = logging.getLogger("guardrail")


class Core(ABC):
    """One artefact's detector under one policy, in front of a model that somebody runs.

    `run_answers` and `run_checks` are what its jobs are run by, on the `worker`'s behalf.
    """

    worker: ModelWorker

    def __init__(
        self, loaded: Processing, artefact: Artefact, policy: Policy, audit: Audit | None
    ) -> None:
        self.artefact, self.policy, self._audit = artefact, policy, audit
        self.processing = loaded
        self.encoder, self.monitor = Encoder(loaded), Monitor(artefact)
        self._detector = Detector.from_artefact(artefact, policy)
        for gap in history_gaps(self.encoder):
            log.warning("what is read of a chat with this model: %s", gap)
        self._notes = tuple(sampling_notes(artefact, policy))  # told with the first video

    @property
    @abstractmethod
    def fingerprint(self) -> Fingerprint:
        """Which model it is."""

    @property
    @abstractmethod
    def context(self) -> int | None:
        """How many positions it has; None if that is not told."""

    @property
    @abstractmethod
    def generation_config(self) -> Any:
        """How the model generates where a request says nothing."""

    @abstractmethod
    def under(self, policy: Policy, audit: Audit | None) -> Self:
        """The same on the same model, under other rules."""

    def trouble(self) -> str | None:
        """Why requests cannot be answered now; None when they can."""
        return None

    @abstractmethod
    def shutdown(self, *, wait_s: float = 0.0) -> None:
        """End this guard's jobs and let go of the model; safe to call twice."""

    @abstractmethod
    def run_answers(self, jobs: Sequence[AnswerJob]) -> Any:
        """Answer a batch."""

    @abstractmethod
    def run_checks(self, jobs: Sequence[CheckJob]) -> Any:
        """Judge a batch."""

    @contextmanager
    def outages(
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

    def _key(self, job: AnswerJob | CheckJob, request: Request) -> object:
        """What jobs of one batch have equal; None: it runs alone."""
        return None

    def answer_job(
        self, settings: Settings, caller: Caller, emit: Callable[[Item], None] | None = None
    ) -> AnswerJob:
        """A job for an answer to a request that is not read yet."""
        return AnswerJob(
            run=self.run_answers,
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
            run=self.run_checks,
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
        """Queue a job, whose request has been read; see `ModelWorker.submit`.

        Raises:
            ConfigurationError: the answer is to be in a form that it cannot be held to.
            UnsupportedModelError: none can be with this model.
        """
        if isinstance(job, AnswerJob) and job.settings.constrained:
            job.grammar = self._grammar(job.settings, request)
        job.request, job.floor, job.key = request, floor, self._key(job, request)
        self.worker.submit(job, wait=wait)

    def _grammar(self, settings: Settings, request: Request) -> Grammar:
        """The form of an answer, before the model runs."""
        from guardrail.model.constrained import Grammar
        from guardrail.online.tool_calls import call_form, callable_tools

        tools = callable_tools(settings.tool_choice, request.tools)
        tokenizer = self.processing.tokenizer
        return Grammar(
            tokenizer,
            ends(self.generation_config),
            schema=None if settings.forces_call else settings.json_schema,
            form=call_form(self.encoder, tokenizer, tools) if tools else None,
            tools=tools,
        )

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
