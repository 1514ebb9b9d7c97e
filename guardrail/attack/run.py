"""A whole run: a guard, harmful and benign inputs and attacks in, a report out."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from guardrail import __version__
from guardrail.attack.attacks import about, asks, find, known
from guardrail.attack.figures import Case, Levels, Outcome, row_of
from guardrail.attack.making import Input, Maker, Settings, outcome_of
from guardrail.attack.placing import Drawn
from guardrail.attack.readings import Reader, ReadingName
from guardrail.attack.schema import PLAIN, AttackReport, AttackRow
from guardrail.errors import DatasetError, GuardrailError
from guardrail.evaluation.cache import Cache
from guardrail.evaluation.judge import PrefixJudge
from guardrail.extras import require_extra
from guardrail.fit.dataset import load_contrast
from guardrail.fit.prompts import spread
from guardrail.inputs.messages import to_request
from guardrail.inputs.rows import LABELS, Row, read_rows

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from guardrail.attack.attacks import Attack
    from guardrail.fit.collect import Progress
    from guardrail.guard import Guard
    from guardrail.policy import Policy

PACKAGED = 40  # of each label, where no file is named
_BELOW = 0.02  # text gaps that a search goes beyond the lowest threshold, so that rounding is none


def load_inputs(path: Path, policy: Policy) -> tuple[list[Input], list[Input]]:
    """The harmful and the benign inputs of a JSONL file; a row without a label is harmful.

    Rows are those of `guardrail evaluate`: `text`, `image` or `messages`, and a `label`.

    Raises:
        DatasetError: a line is malformed, or its label unknown; the message names it.
        InputError: a request is larger than the policy allows.
    """
    both: dict[str, list[Input]] = {"harmful": [], "harmless": []}
    reading = policy.model_copy(update={"local_files": True})
    for number, row in read_rows(path, Row):
        label = LABELS.get(str(row.label).lower()) if row.label is not None else "harmful"
        if label is None:
            raise DatasetError(
                f"{path}, line {number}: the label {row.label!r} is none of {', '.join(LABELS)}"
            )
        try:
            chat = row.chat(path.parent)
            request = to_request(chat, policy=reading, tools=tuple(row.tools) or None)
        except GuardrailError as error:
            raise DatasetError(f"{path}, line {number}: {error}") from error
        both[label].append(Input(row.id or f"{path.stem}-{number}", request))
    return both["harmful"], both["harmless"]


def packaged_inputs(policy: Policy, count: int = PACKAGED) -> tuple[list[Input], list[Input]]:
    """Packaged contrast prompts of the splits that no direction is fitted on, `count` a label.

    Thresholds are set on the safe ones, and layers chosen on some, so a guard looks better on them
    than on inputs of one's own.
    """
    prompts = load_contrast().prompts
    held = [p for p in prompts if p.in_split != "fit"]
    harmful, benign = (
        [
            Input(prompt.id, to_request(prompt.text, policy=policy))
            for prompt in spread([p for p in held if p.label == label], count)
        ]
        for label in ("unsafe", "safe")
    )
    return harmful, benign


def attack(
    guard: Guard,
    harmful: Sequence[Input],
    benign: Sequence[Input] = (),
    *,
    names: Sequence[str] | None = None,
    settings: Settings | None = None,
    work_dir: Path | None = None,
    content: bool = False,
    progress: Progress | None = None,
) -> AttackReport:
    """Measure what a guard holds against somebody who wants through.

    The model is run here, so nobody else may use the guard meanwhile.

    Args:
        guard: the guard, under the policy that is to be judged.
        harmful: requests that an attacker wants answered.
        benign: ordinary inputs; without them there are no rates at 1 and 5 % FPR and no control.
        names: attacks, built in by name or one's own as `package.module:Class`; None: all built in.
        settings: how far to go.
        work_dir: keep there what was asked and what became of it; an interrupted run goes on.
        content: keep in the report what the most successful input of each attack looked like.
        progress: called with an attack's name, what is done of it, and its total.

    Raises:
        DatasetError: there is nothing to attack, or an input cannot be read as it is.
        ConfigurationError: an attack, a setting or the work folder cannot be used.
        MissingExtraError: the extra `fit` is not installed.
    """
    require_extra("fit")
    chosen = [find(name) for name in (known() if names is None else names)]
    harmful, benign = _named(harmful), _named(benign)
    if not harmful:
        raise DatasetError("there are no harmful inputs to attack with")
    with Cache(work_dir) as cache:
        rules = settings or Settings()
        reader = Reader(guard, cache, batch_size=rules.batch_size)
        told = progress or (lambda _stage, _done, _total: None)
        run = _Run(guard, reader, Maker(guard, reader, cache, rules, told), rules, told)
        return run.report(chosen, harmful, benign, content=content)


def _named(inputs: Sequence[Input]) -> list[Input]:
    """The inputs with names of their own."""
    return [replace(one, id=f"{number} {one.id}") for number, one in enumerate(inputs)]


@dataclass
class _Run:
    guard: Guard
    reader: Reader
    maker: Maker
    settings: Settings
    progress: Progress

    def report(
        self,
        chosen: Sequence[Attack],
        harmful: Sequence[Input],
        benign: Sequence[Input],
        *,
        content: bool,
    ) -> AttackReport:
        started = time.perf_counter()
        first = self._as_it_is(harmful, self.settings.answers)
        safe = self._as_it_is(benign, 0)
        drawn = self.maker.outcomes(
            Drawn(), benign, None, float("-inf"), "benign, drawn", answers=0
        )
        levels = Levels.of(self.reader.detector, self.reader.names, safe, drawn)
        before = {one.id: one for one in first}
        judge = PrefixJudge.also(self.guard.artefact.header.refusal_prefixes)
        names = self.reader.names

        def refused(answer: str) -> bool:
            return judge([""], [answer])[0]

        plain = Case(
            name=PLAIN,
            family="",
            about="The inputs as they are.",
            harmful=first,
            benign=safe,
            before=before,
            seconds=time.perf_counter() - started,
        )
        cases = [plain]
        for one in chosen:
            cases += self._cases(one, harmful, benign, levels, before)
        rows = [row_of(case, levels, names, refused, content) for case in cases]
        return AttackReport(
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            guardrail_version=__version__,
            model=self.guard.loaded.name,
            artefact_id=self.guard.artefact.artefact_id,
            thresholds={m.value: t.model_dump() for m, t in self.guard.thresholds.items()},
            reading_thresholds={
                modality: {name: dict(found) for name, found in names.items()}
                for modality, names in levels.readings.items()
            },
            n_harmful=len(harmful),
            n_benign=len(benign),
            settings={**asdict(self.settings), "aims": list(self.settings.aims)},
            rows=tuple(rows),
            warnings=tuple(_warnings(rows, harmful, benign, self.reader.names)),
        )

    def _as_it_is(self, inputs: Sequence[Input], answers: int) -> list[Outcome]:
        """The inputs as they are; one that cannot be read ends the run."""
        found: list[Outcome] = []
        size = self.settings.batch_size
        for start in range(0, len(inputs), size):
            part = inputs[start : start + size]
            for one, read in zip(part, self.reader([i.request for i in part]), strict=True):
                if read.problem:
                    raise DatasetError(
                        f"input {one.id!r} cannot be read as it is: {read.problem}; correct or "
                        "remove it"
                    )
                answer = self.maker.answer(one.request) if len(found) < answers else None
                found.append(outcome_of(one.id, read, one.request, answer=answer))
            self.progress(PLAIN, len(found), len(inputs))
        return found

    def _cases(
        self,
        one: Attack,
        harmful: Sequence[Input],
        benign: Sequence[Input],
        levels: Levels,
        before: dict[str, Outcome],
    ) -> Iterator[Case]:
        """An attack, once for each reading that it is aimed at."""
        if not asks(one):
            aims: Sequence[ReadingName | None] = (None,)
        else:
            aims = [aim for aim in self.settings.aims if aim in self.reader.names]
            most = self.settings.searched
            most = min(most, self.settings.gradients) if one.family == "gradients" else most
            harmful, benign = harmful[:most], benign[:most]
        for aim in aims:
            started = time.perf_counter()
            goal = levels.lowest(aim) - _BELOW if aim else float("-inf")
            title = one.name if aim in (None, "joint") else f"{one.name} ({aim})"
            yield Case(
                name=one.name,
                family=one.family,
                about=about(one),
                aim=aim or "",
                harmful=self.maker.outcomes(one, harmful, aim, goal, title),
                # as many words or tokens, and no search for those that help
                benign=self.maker.outcomes(
                    one, benign, aim, float("-inf"), f"{title}, benign", questions=1, answers=0
                ),
                before=before,
                questions=self.settings.questions,
                seconds=time.perf_counter() - started,
            )


def _warnings(
    rows: Sequence[AttackRow],
    harmful: Sequence[Input],
    benign: Sequence[Input],
    names: Sequence[str],
) -> Iterator[str]:
    """What a reader must know before believing the figures."""
    if not benign:
        yield "no benign inputs: there are no rates at 1 and 5 % FPR, and no control"
    elif len(benign) < 100:
        yield (
            f"{len(benign)} benign inputs cannot show a false-positive rate of 1 %; at least 100 "
            "are needed. The threshold for it is the highest of them"
        )
    if len(harmful) < 30:
        yield f"{len(harmful)} harmful inputs: intervals are wide; 100 or more tell attacks apart"
    if "windows" not in names:
        yield "the artefact has no windows: what stands behind a request may lower its score"
    late = [row.title for row in rows if row.late]
    if late:
        yield (
            f"searches that ran out of seconds, so that another run may differ: {', '.join(late)}; "
            "raise --seconds"
        )
    for row in rows:
        if not row.n:
            why = "; ".join(row.left_out) or "there was no input"
            yield f"{row.name}: could be done to no input ({why})"
