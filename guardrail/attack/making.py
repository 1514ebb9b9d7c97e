"""Attacks done to inputs, one after another: asked, counted, kept, and gone on with.

What became of an input is kept by everything it depends on, so an interrupted run goes on where it
was; what a search asked is kept too, so that its first half is not asked again.
"""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from guardrail.attack.attacks import Budget, said
from guardrail.attack.figures import Outcome
from guardrail.attack.gradients import WhiteBox
from guardrail.attack.readings import READINGS, ReadingName, Scores
from guardrail.errors import ConfigurationError
from guardrail.evaluation.answers import PlainAnswers
from guardrail.evaluation.cache import key_of
from guardrail.evaluation.inputs import INPUT_ERRORS
from guardrail.inputs.messages import request_digest

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from guardrail.attack.attacks import Attack
    from guardrail.attack.readings import Reader
    from guardrail.evaluation.cache import Cache
    from guardrail.fit.collect import Progress
    from guardrail.guard import Guard
    from guardrail.types import Request


@dataclass(frozen=True)
class Input:
    """One request and its name."""

    id: str
    request: Request


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How far a run goes.

    `aims` are the readings whose scores searches are told, one search each. `searched` inputs are
    searched for, `gradients` of them with gradients; all other attacks take every input. `answers`
    of each attack's harmful inputs are answered without a guard, in `new_tokens`.
    """

    questions: int = 200
    seconds: float = 120.0
    seed: int = 0
    aims: tuple[ReadingName, ...] = ("joint",)
    searched: int = 20
    gradients: int = 8
    answers: int = 10
    new_tokens: int = 16
    batch_size: int = 16

    def __post_init__(self) -> None:
        """Refuse what no run could be made with.

        Raises:
            ConfigurationError: a bound is too small, or an aim is no reading.
        """
        if min(self.questions, self.searched, self.gradients, self.batch_size) < 1:
            raise ConfigurationError("questions, searched, gradients and batch_size are at least 1")
        if self.answers < 0 or self.seconds <= 0 or self.new_tokens < 1:
            raise ConfigurationError(
                "answers is at least 0, new_tokens at least 1, seconds above 0"
            )
        if not self.aims or not set(self.aims) <= set(READINGS):
            raise ConfigurationError(
                f"aims are readings ({', '.join(READINGS)}); got {', '.join(self.aims) or 'none'}"
            )


class _Asked:
    """The scorer that an attack is given: it counts, keeps the course, and ends with the budget."""

    def __init__(
        self, reader: Reader, aim: ReadingName, goal: float, budget: Budget, white: WhiteBox
    ) -> None:
        self.goal = goal
        self.white: WhiteBox | None = white
        self.course: list[tuple[int, float]] = []
        self.lowest: Request | None = None
        self._reader, self._aim, self._budget = reader, aim, budget

    def __call__(self, requests: Sequence[Request]) -> list[float]:
        """Scores, rounded so that the make-up of a batch decides nothing."""
        if len(requests) > self._budget.left:
            raise _SpentError
        found = []
        for request, read in zip(requests, self._reader(requests), strict=True):
            self._budget.asked += 1
            score = float("inf") if read.problem else round(read.by[self._aim], 5)
            if score < (self.course[-1][1] if self.course else float("inf")):
                self.course.append((self._budget.asked, score))
                self.lowest = request
            found.append(score)
        return found


class _SpentError(Exception):
    """An attack asks more than it may; what it found so far counts."""


class Maker:
    """Does attacks to inputs of one guard."""

    def __init__(
        self, guard: Guard, reader: Reader, cache: Cache, settings: Settings, progress: Progress
    ) -> None:
        self.reader, self.cache = reader, cache
        self.settings, self.progress = settings, progress
        self._white = WhiteBox(guard.loaded, reader.encoder, reader.detector)
        self._answers = PlainAnswers(guard, settings.new_tokens)

    def outcomes(
        self,
        one: Attack,
        inputs: Sequence[Input],
        aim: ReadingName | None,
        goal: float,
        title: str,
        *,
        questions: int | None = None,
        answers: int | None = None,
    ) -> list[Outcome]:
        """What became of each input; `questions` and `answers` are the settings' if left out."""
        wanted = self.settings.answers if answers is None else answers
        budget = Budget(questions or self.settings.questions, self.settings.seconds)
        key = _key_of(one, self.reader.identity, self.settings, aim, goal, budget)
        found: list[Outcome] = []
        size = self.settings.batch_size if aim is None else 1
        for start in range(0, len(inputs), size):
            part = inputs[start : start + size]
            keys = [key(each.request) for each in part]
            kept = self.cache.get(keys)
            done = {
                k: replace(_unpacked(data), id=each.id)
                for k, each in zip(keys, part, strict=True)
                if (data := kept.get(k)) is not None
            }
            left = [each for k, each in zip(keys, part, strict=True) if k not in done]
            if left:
                made = self._made(one, left, aim, goal, budget.fresh())
                fresh = {key(each.request): out for each, out in zip(left, made, strict=True)}
                self.cache.put({k: _packed(out) for k, (out, _) in fresh.items()})
                done |= {k: out for k, (out, _) in fresh.items()}
            for place, (k, each) in enumerate(zip(keys, part, strict=True)):
                out = done[k]
                if start + place < wanted and not out.problem:
                    sent = fresh[k][1] if left and k in fresh else None
                    out = replace(
                        out, answer=self._kept_answer(one, each, k, sent, aim, goal, budget)
                    )
                found.append(out)
            self.progress(title, len(found), len(inputs))
        return found

    def _kept_answer(
        self,
        one: Attack,
        each: Input,
        key: str,
        sent: Request | None,
        aim: ReadingName | None,
        goal: float,
        budget: Budget,
    ) -> str | None:
        """What the model says to an attacked input, which is made again where it is not at hand."""
        answered = key_of("answer to an attack", key, str(self.settings.new_tokens))
        kept = self.cache.get([answered]).get(answered)
        if kept is not None:
            before: str | None = json.loads(kept)["answer"]
            return before
        if sent is None:
            sent = self._made(one, [each], aim, goal, budget.fresh())[0][1]
        answer = None if sent is None else self.answer(sent)
        self.cache.put({answered: json.dumps({"answer": answer}).encode()})
        return answer

    def answer(self, request: Request) -> str | None:
        """The model's own answer; None where it cannot give one."""
        try:
            return self._answers([request])[0].text
        except INPUT_ERRORS:
            return None

    def _made(
        self,
        one: Attack,
        inputs: Sequence[Input],
        aim: ReadingName | None,
        goal: float,
        budget: Budget,
    ) -> list[tuple[Outcome, Request | None]]:
        """Attack some inputs, and read what came of it."""
        scorer = _Asked(self.reader, aim or "joint", goal, budget, self._white)
        requests = [each.request for each in inputs]
        try:
            made = one(requests, scorer, budget, self.settings.seed)
        except _SpentError:
            made = [scorer.lowest] * len(requests)
        except INPUT_ERRORS as error:
            if isinstance(error, ConfigurationError):
                raise
            said = " ".join(str(error).split())[:200]
            problem = f"{type(error).__name__}: {said}"
            return [(Outcome(id=each.id, problem=problem), None) for each in inputs]
        if len(made) != len(requests):
            raise ConfigurationError(
                f"the attack {one.name!r} gave {len(made)} outputs for {len(requests)} inputs; it "
                "gives one for each, None where it cannot be done"
            )
        read = iter(self.reader([request for request in made if request is not None]))
        found: list[tuple[Outcome, Request | None]] = []
        for each, request in zip(inputs, made, strict=True):
            if request is None:
                problem = "it cannot be done to this input, or with this model"
                found.append((Outcome(id=each.id, problem=problem), None))
                continue
            out = outcome_of(each.id, next(read), request)
            out = replace(out, asked=budget.asked, late=budget.late, course=tuple(scorer.course))
            found.append((out, request))
        return found


def outcome_of(id_: str, read: Scores, request: Request, answer: str | None = None) -> Outcome:
    """What was read of one input, and what is said in its last message."""
    words = said(request) or ""
    return Outcome(
        id=id_, by=read.by, kind=read.kind, problem=read.problem, words=words, answer=answer
    )


def _key_of(
    one: Attack,
    identity: str,
    settings: Settings,
    aim: ReadingName | None,
    goal: float,
    budget: Budget,
) -> Callable[[Request], str]:
    """The cache's key of an input under an attack: everything that its outcome depends on."""
    kind = type(one)
    try:
        source = inspect.getsource(kind)
    except (OSError, TypeError):  # made on the spot, or by a compiler
        source = ""
    where = f"{kind.__module__}:{kind.__qualname__}"
    limits = (
        [settings.seed, aim, goal, budget.questions, budget.seconds] if aim else [settings.seed]
    )
    about_it = json.dumps([where, source, limits])
    return lambda request: key_of("attacked", identity, about_it, request_digest(request))


def _packed(out: Outcome) -> bytes:
    return json.dumps({**asdict(out), "by": dict(out.by)}).encode()


def _unpacked(data: bytes) -> Outcome:
    found: dict[str, Any] = json.loads(data)
    return Outcome(**{**found, "course": tuple(map(tuple, found["course"]))})
