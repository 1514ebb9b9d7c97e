"""`guardrail evaluate`: how good the guard is on labelled inputs, with controls beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from guardrail.cli import options as o
from guardrail.cli.evaluation_files import explained_mistakes, write_reports
from guardrail.cli.evaluation_table import show_evaluation
from guardrail.cli.gates import Gates
from guardrail.cli.output import FINDING, progress, say, session, write_json
from guardrail.cli.requests import (
    open_guard,
    read_artefact,
    read_policy,
    ready_to_write,
    require_pages,
    with_sampling,
)

if TYPE_CHECKING:
    from guardrail.evaluation.judge import Judge
    from guardrail.evaluation.schema import Report

_FILE_OR_FOLDER = "Labelled inputs: JSONL, or a folder of JSONL, pictures or videos; repeatable."


def evaluate(
    model: o.ModelName,
    artefact: o.ArtefactName,
    data: Annotated[
        list[Path],
        typer.Option("--data", "-d", metavar="PATH", exists=True, help=_FILE_OR_FOLDER),
    ],
    prompt: Annotated[
        str | None, typer.Option(help="What is asked about a folder's files without a .txt.")
    ] = None,
    new_tokens: Annotated[int, typer.Option(min=1, help="Length of each answer.")] = 16,
    no_answers: Annotated[
        bool, typer.Option("--no-answers", help="Scores, controls and actions only; much faster.")
    ] = False,
    judge: Annotated[
        str | None,
        typer.Option(metavar="MODULE:FUNCTION", help="Your own judge of refusals."),
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
    fps: o.Fps = None,
    window: o.WindowFrames = None,
    policy: o.PolicyFile = None,
    device: o.Device = None,
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
    allow_mismatch: o.AllowMismatch = False,
    audit: o.AuditFile = None,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Measure the guard on labelled inputs; exits with 1 when a gate that was set is missed."""
    _refuse_contradictions(judge, judge_model, judge_sample, no_answers=no_answers)
    if explain and (html is None or no_content):
        raise typer.BadParameter("--explain shows prompts in the page: it needs --html and content")
    loading = o.Loading(
        device=device, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code
    )
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
        fitted, rules = read_artefact(artefact), with_sampling(read_policy(policy), fps, window)
        chosen = _judge(judge, judge_model, loading)

        from guardrail.evaluation.run import evaluate as run_evaluation

        with (
            open_guard(
                model, fitted, rules, loading, allow_mismatch=allow_mismatch, audit=audit
            ) as guard,
            progress() as bars,
        ):
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


def _judge(name: str | None, model: str | None, loading: o.Loading) -> Judge | None:
    from guardrail.evaluation.judge import load_judge

    if name is not None:
        return load_judge(name)
    if model is None:
        return None
    from guardrail.evaluation.judge import ModelJudge
    from guardrail.model.load import load_model

    return ModelJudge(load_model(model, **loading.of_another_model()))


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
