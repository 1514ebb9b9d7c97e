"""Everything an evaluation asks of the model, stage by stage."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from guardrail.errors import DetectorError
from guardrail.evaluation import answers as a
from guardrail.evaluation import quality as q
from guardrail.evaluation import scores as s
from guardrail.evaluation.judge import judged
from guardrail.evaluation.keys import Keys
from guardrail.evaluation.rows import Row
from guardrail.evaluation.schema import Timing
from guardrail.evaluation.stage import Context, Stage, T, run_stage
from guardrail.evaluation.windows import residuals_of
from guardrail.fit.collect import Collector
from guardrail.policy.acting import enforces

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from guardrail.evaluation.inputs import Input
    from guardrail.evaluation.judge import Judge
    from guardrail.guard import Guard
    from guardrail.types import Request


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
        self.scorer = s.Scorer(self.guard.artefact, self.guard.policy)

    def rows(self, inputs: Sequence[Input]) -> list[Row]:
        """One prefill of each input: its scores. The residuals themselves are not kept here."""
        loaded, dtype = self.guard.loaded, self.guard.loaded.dtype
        collect = Collector(loaded, batch_size=self.batch_size)
        collect.encoder = a.BoundedEncoder(loaded, self.guard.policy.limits)
        found: dict[str, s.ItemScores] = {}

        def ask(requests: Sequence[Request]) -> list[Tensor]:
            return residuals_of(collect, requests, self.guard.policy.video)

        def use(one: Input, residuals: Tensor) -> None:
            try:
                found[one.item.id] = self.scorer(residuals, one.kind)
            except DetectorError as error:
                self.context.troubles.note(one.item, "scores", error)

        self._run(
            Stage(
                name="scores",
                batch=self.batch_size,
                key=self.keys.residuals,
                ask=ask,
                pack=lambda residuals: s.packed(residuals, dtype),
                unpack=lambda data: s.unpacked(data, self.scorer.shape),
                use=use,
            ),
            inputs,
        )
        return [Row(input=one, scores=found[one.item.id]) for one in inputs if one.item.id in found]

    def answered(self, rows: Sequence[Row], new_tokens: int) -> list[Row]:
        """The rows that could be answered both ways, with their answers."""
        plain: dict[str, a.Answer] = {}
        guarded: dict[str, a.GuardedAnswer] = {}
        settings = f"greedy, {new_tokens} tokens"
        shadow = not enforces(self.guard.policy)
        self._run(
            Stage(
                name="plain answers",
                batch=self.batch_size,
                key=lambda digest: self.keys.plain(digest, settings),
                ask=a.PlainAnswers(self.guard, new_tokens),
                pack=a.packed,
                unpack=a.plain_from,
                use=lambda one, answer: plain.update({one.item.id: answer}),
            ),
            [row.input for row in rows],
        )
        self._run(
            Stage(
                name="guarded answers",
                batch=4 * self.guard.policy.limits.batch,  # the guard makes its own batches of them
                key=lambda digest: self.keys.guarded(digest, settings),
                ask=a.GuardedAnswers(self.guard, new_tokens),
                pack=a.packed,
                unpack=a.guarded_from,
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
        encoder = a.BoundedEncoder(loaded, limits, new_tokens=1)
        known = {row.input.digest: row.score for row in rows}
        self._run(
            Stage(
                name="divergence",
                batch=self.batch_size,
                key=self.keys.kl,
                ask=q.Divergence(loaded, encoder, self.scorer.detector, known),
                pack=q.packed,
                unpack=q.unpacked,
                use=lambda one, value: found.update({one.item.id: value}),
            ),
            [row.input for row in q.to_measure(rows)],
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
        self.timings.append(
            Timing(
                stage="judging", seconds=time.perf_counter() - started, n=len(pairs), cached=known
            )
        )
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
