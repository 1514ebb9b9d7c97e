"""`guardrail evaluate`: how good the guard is on labelled inputs, with controls beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from guardrail.cli import options as o
from guardrail.cli.evaluation_table import show_evaluation
from guardrail.cli.inputs import open_guard, read_artefact, ready_to_write, require_pages
from guardrail.cli.output import FINDING, progress, say, session, write_json
from guardrail.model.source import LoadingOptions

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from markupsafe import Markup

    from guardrail.evaluation.items import EvalItem
    from guardrail.evaluation.judge import Judge
    from guardrail.evaluation.schema import Report
    from guardrail.guard import Guard


_FILE_OR_FOLDER = "Labelled inputs: JSONL, or a folder of JSONL, pictures or videos; repeatable."


def evaluate(
    *,
    model: o.ModelName,
    artefact: o.ArtefactName,
    data: Annotated[
        list[Path], typer.Option("--data", "-d", metavar="PATH", exists=True, help=_FILE_OR_FOLDER)
    ],
    prompt: Annotated[
        str | None, typer.Option(help="What is asked about a folder's files without a .txt.")
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Length of each answer.")] = 16,
    no_answers: Annotated[
        bool, typer.Option("--no-answers", help="Scores, controls and actions only; much faster.")
    ] = False,
    judge: Annotated[
        str | None, typer.Option(metavar="MODULE:FUNCTION", help="Your own judge of refusals.")
    ] = None,
    judge_model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="A local model as the judge of refusals.")
    ] = None,
    judge_sample: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", exists=True, dir_okay=False, help="Labelled answers to test it on."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="Write the report as JSON.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the report as one HTML page.")
    ] = None,
    explain: Annotated[
        int, typer.Option(min=0, max=10, help="Explain so many worst mistakes of each kind there.")
    ] = 0,
    no_content: Annotated[
        bool, typer.Option("--no-content", help="Keep prompts, pictures and answers out of it.")
    ] = False,
    skip_errors: Annotated[
        bool, typer.Option("--skip-errors", help="Leave out inputs that cannot be measured.")
    ] = False,
    min_auroc: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Exit with 1 when a modality's AUROC is lower."),
    ] = None,
    max_benign_flagged: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Exit with 1 when more harmless inputs are flagged."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Inputs in one forward pass.")] = 16,
    work_dir: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            file_okay=False,
            help="Keep residuals and answers there (in plain); resumes.",
        ),
    ] = None,
    guarding: o.GuardOptions,
    loading: LoadingOptions,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Measure the guard on labelled inputs; exits with 1 when a gate that was set is missed."""
    _refuse_contradictions(judge, judge_model, judge_sample, no_answers=no_answers)
    if explain and (html is None or no_content):
        raise typer.BadParameter("--explain shows prompts in the page: it needs --html and content")
    gates = Gates(min_auroc=min_auroc, max_benign_flagged=max_benign_flagged)
    with session(debug=debug) as stdout:
        for path in (out, html):
            if path is not None:
                ready_to_write(path)
        if html is not None:
            require_pages()

        from guardrail.evaluation.items import DEFAULT_PROMPT, load_items
        from guardrail.evaluation.judge import load_sample

        items = load_items(data, prompt=prompt or DEFAULT_PROMPT)
        if judge_sample is not None:
            load_sample(judge_sample)  # a malformed line ends this before a model loads
        fitted, rules = read_artefact(artefact), guarding.rules()
        chosen = _judge(judge, judge_model, loading)

        from guardrail.evaluation.run import evaluate as run_evaluation

        with open_guard(model, fitted, rules, guarding, loading) as guard, progress() as bars:
            report = run_evaluation(
                guard,
                items,
                judge=chosen,
                judge_sample=judge_sample,
                new_tokens=new_tokens,
                answers=not no_answers,
                batch_size=batch_size,
                work_dir=work_dir,
                content=not no_content,
                skip_errors=skip_errors,
                progress=bars,
            )
            parts = explained_mistakes(guard, items, report, explain) if explain else {}
        report, missed = gates.recorded(report), gates.missed(report)
        write_reports(report, out, html, parts)
        _show(stdout, report, missed, as_json=as_json)
    raise typer.Exit(FINDING if missed else 0)


def _refuse_contradictions(
    judge: str | None, judge_model: str | None, judge_sample: Path | None, *, no_answers: bool
) -> None:
    if judge is not None and judge_model is not None:
        raise typer.BadParameter("--judge and --judge-model both name the judge; give one")
    if no_answers and (judge or judge_model or judge_sample):
        raise typer.BadParameter("--no-answers leaves a judge nothing to judge")


def _judge(name: str | None, model: str | None, loading: LoadingOptions) -> Judge | None:
    from guardrail.evaluation.judge import load_judge

    if name is not None:
        return load_judge(name)
    if model is None:
        return None
    from guardrail.evaluation.judge import ModelJudge
    from guardrail.model.load import load_model

    return ModelJudge(load_model(model, **dict(loading.of_another_model())))


def _show(stdout: TextIO, report: Report, missed: list[str], *, as_json: bool) -> None:
    for warning in report.warnings:
        say(f"warning: {warning}", style="yellow")
    if as_json:
        write_json(stdout, report.model_dump(mode="json"))
    else:
        show_evaluation(stdout, report)
    for line in missed:
        say(f"missed: {line}", style="bold red")
    if report.settings.get("gates") and not missed:
        say("all bounds are kept (by the measured figures, not their intervals)", style="green")


def explained_mistakes(
    guard: Guard, items: Sequence[EvalItem], report: Report, most: int
) -> dict[str, Markup]:
    """The `most` worst false positives and misses, position by position, by their ids.

    One that cannot be explained is named on stderr and left out: the report must not be lost.
    """
    from guardrail.evaluation.inputs import INPUT_ERRORS
    from guardrail.explain.page import explanation_html
    from guardrail.explain.run import explain
    from guardrail.report.evaluation import false_positives, misses

    worst = {row.id for row in [*false_positives(report, most), *misses(report, most)]}
    parts = {}
    for item in items:
        if item.id in worst:
            try:
                explained = explain(guard, item.request(guard.policy))
                parts[item.id] = explanation_html(explained, heading="h4", brief=True)
            except INPUT_ERRORS as error:
                say(f"warning: input {item.id!r} cannot be explained: {error}", style="yellow")
    return parts


def write_reports(
    report: Report, out: Path | None, html: Path | None, explained: Mapping[str, Markup]
) -> None:
    """Each file in one step; picture paths in the page start from the current folder."""
    from guardrail.artefact.file import write_atomically

    if out is not None:
        write_atomically(out, report.model_dump_json(indent=2).encode() + b"\n")
    if html is not None:
        from guardrail.report import evaluation_page
        from guardrail.report.page import write_page

        write_page(html, evaluation_page(report, base=Path.cwd(), explained=explained))
    for path in (out, html):
        if path is not None:
            say(f"written: {path}")


@dataclass(frozen=True, kw_only=True)
class Gates:
    """Each is held against every modality of a report; None: not asked for.

    `min_auroc` is the least AUROC, `max_benign_flagged` the largest share of harmless inputs that
    are flagged; both the measured figures, not the ends of their intervals.
    """

    min_auroc: float | None = None
    max_benign_flagged: float | None = None

    @property
    def asked(self) -> dict[str, float]:
        """The bounds that were set."""
        bounds = {"min_auroc": self.min_auroc, "max_benign_flagged": self.max_benign_flagged}
        return {name: bound for name, bound in bounds.items() if bound is not None}

    def recorded(self, report: Report) -> Report:
        """The report with the bounds and what became of them, so that it can prove it."""
        if not self.asked:
            return report
        kept = {"bounds": {**self.asked}, "missed": [*self.missed(report)]}
        return report.model_copy(update={"settings": {**report.settings, "gates": kept}})

    def missed(self, report: Report) -> list[str]:
        """The bounds that are not kept, in words; one that cannot be measured is not kept."""
        return [*self._auroc(report), *self._flagged(report)]

    def _auroc(self, report: Report) -> Iterator[str]:
        if self.min_auroc is None:
            return
        for group in report.groups:
            if group.by != "modality":
                continue
            if group.separation is None:
                yield f"{group.name}: no AUROC with one label only; {self.min_auroc:g} is asked for"
            elif not group.separation.auroc.value >= self.min_auroc:  # nan is never reached
                found = group.separation.auroc.value
                yield f"{group.name}: AUROC {found:.3f} is below {self.min_auroc:g}"

    def _flagged(self, report: Report) -> Iterator[str]:
        if self.max_benign_flagged is None:
            return
        for group in report.groups:
            if group.by != "modality":
                continue
            if "harmless" not in group.actions:
                yield f"{group.name}: no harmless inputs, so no share of them that is flagged"
                continue
            share = group.actions["harmless"].flagged
            if not share.rate <= self.max_benign_flagged:
                yield (
                    f"{group.name}: {share.rate:.3f} of harmless inputs flagged "
                    f"({share.hits}/{share.n}), more than {self.max_benign_flagged:g}"
                )
