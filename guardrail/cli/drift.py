"""`guardrail drift`: does an artefact still hold on a changed checkpoint?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from guardrail.cli import options as o
from guardrail.cli.drift_report import show_drift
from guardrail.cli.output import FINDING, progress, session, write_json
from guardrail.cli.requests import read_artefact, ready_to_write, require_pages
from guardrail.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.artefact import Artefact
    from guardrail.drift.schema import DriftReport

OldArtefact = Annotated[
    str, typer.Argument(metavar="ARTEFACT", help="Fitted on an old checkpoint.")
]
NewModel = Annotated[
    str, typer.Option("--model", "-m", metavar="MODEL", help="The checkpoint to hold it against.")
]
OldModel = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL", help="The old checkpoint, if at hand: compared prompt by prompt."
    ),
]
Data = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", exists=True, dir_okay=False, help="The contrast prompts of the fit (JSONL)."
    ),
]
ReplaceData = Annotated[
    bool,
    typer.Option("--replace-data", help="The fit used --data instead of the packaged prompts."),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Prompts in one forward pass.")]
WorkDir = Annotated[
    Path | None,
    typer.Option(metavar="DIR", file_okay=False, help="Keep what is read; resumes a check."),
]


def drift(
    artefact: OldArtefact,
    model: NewModel,
    fix: Annotated[
        bool, typer.Option("--fix", help="Make the artefact the verdict asks for, into -o.")
    ] = False,
    made: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help="The new artefact; with --fix."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--report", metavar="FILE", dir_okay=False, help="The report as JSON."),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", dir_okay=False, help="The report as a page.")
    ] = None,
    data: Data = None,
    replace_data: ReplaceData = False,
    old_model: OldModel = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Read the prompts even if MODEL has not changed.")
    ] = False,
    per_kind: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Prompts of each kind to read, out of the fit's; fewer tell less. Not to fix.",
        ),
    ] = None,
    batch_size: BatchSize = 16,
    work_dir: WorkDir = None,
    device: o.Device = None,
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Hold ARTEFACT against another checkpoint: keep it, recalibrate it, or fit again.

    The model it was fitted on is kept without a measurement.

    Exit codes: 0 keep, 1 drifted (repaired or not), 2 an error or no usable direction.
    """
    if fix is (made is None):
        raise typer.BadParameter("--fix and --out belong together: where should what be written?")
    if fix and per_kind is not None:
        raise typer.BadParameter("--fix needs all prompts of the fit: leave --per-kind out")
    check_data(data, replace_data)
    loading = o.Loading(
        device=device, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code
    )
    with session(debug=debug) as stdout:
        check_places(artefact, made, (out, html))
        if html is not None:
            require_pages()
        fitted = read_artefact(artefact)

        from guardrail.drift.run import check_drift
        from guardrail.model.load import load_model

        loaded = load_model(model, **loading.keywords())
        before = None if old_model is None else load_model(old_model, **loading.of_another_model())
        with progress() as report:
            found = check_drift(
                fitted,
                loaded,
                old_model=before,
                data=data,
                extend=not replace_data,
                fix=fix,
                measure=measure,
                per_kind=per_kind,
                batch_size=batch_size,
                work_dir=work_dir,
                progress=report,
            )
        told = save(found.report, found.artefact, made, out, html)
        if as_json:
            write_json(stdout, told.model_dump(mode="json"))
        else:
            show_drift(stdout, told)
    raise typer.Exit(0 if told.verdict == "keep" else FINDING)


def check_places(artefact: str, made: Path | None, reports: Sequence[Path | None]) -> None:
    """Fail before the work when a file cannot be written, or one would replace another.

    Raises:
        ConfigurationError: naming what is wrong.
    """
    told = [path for path in reports if path is not None]
    paths = told if made is None else [*told, made]
    for path in paths:
        ready_to_write(path)
    places = {path.resolve() for path in paths}
    replaced = Path(artefact).resolve() in {path.resolve() for path in told}
    if replaced or len(places) < len(paths):
        raise ConfigurationError(
            "--out, --report and --html need a file each, and a report cannot take ARTEFACT's place"
        )


def check_data(data: Path | None, replace_data: bool) -> None:
    """Refuse --replace-data without --data."""
    if replace_data and data is None:
        raise typer.BadParameter("--replace-data needs --data: what replaced the prompts?")


def save(
    report: DriftReport,
    artefact: Artefact | None,
    made: Path | None,
    out: Path | None,
    html: Path | None,
) -> DriftReport:
    """Write what was asked for, once all of it is there; the report names the artefact's file."""
    from guardrail.artefact.file import write_atomically

    if report.repaired is not None and made is not None:
        named = report.repaired.model_copy(update={"path": str(made)})
        report = report.model_copy(update={"repaired": named})
    page = None
    if html is not None:
        from guardrail.report.drift import drift_page

        page = drift_page(report)
    if artefact is not None and made is not None:
        artefact.save(made)
    if out is not None:
        write_atomically(out, (report.model_dump_json(indent=2) + "\n").encode())
    if page is not None and html is not None:
        from guardrail.report.page import write_page

        write_page(html, page)
    return report
