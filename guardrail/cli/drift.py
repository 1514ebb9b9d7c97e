"""`guardrail drift` and `guardrail transport`: an artefact and a changed checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from guardrail.cli import options as o
from guardrail.cli.inputs import read_artefact, ready_to_write, require_pages
from guardrail.cli.output import FINDING, progress, say, session, write_json, write_rows
from guardrail.errors import ConfigurationError
from guardrail.model.source import LoadingOptions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from guardrail.artefact import Artefact
    from guardrail.drift.schema import DriftReport, Figures, TransportFigures
    from guardrail.model.load import LoadedModel
    from guardrail.stats import Estimate, Share

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
NONE, WIDE = "-", 140


def drift(
    *,
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
    loading: LoadingOptions,
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
    with session(debug=debug) as stdout:
        check_places(artefact, made, (out, html))
        if html is not None:
            require_pages()
        fitted = read_artefact(artefact)

        from guardrail.drift.run import check_drift

        loaded, before = _loaded(model, old_model, loading)
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


def transport(
    *,
    artefact: OldArtefact,
    model: NewModel,
    out: o.Out,
    old_model: OldModel = None,
    data: Data = None,
    replace_data: ReplaceData = False,
    batch_size: BatchSize = 16,
    work_dir: WorkDir = None,
    loading: LoadingOptions,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Carry ARTEFACT over to a model that differs by the order and signs of its channels only.

    Where the change is another one, nothing is written and the exit code is 2.
    """
    check_data(data, replace_data)
    with session(debug=debug) as stdout:
        ready_to_write(out)
        fitted = read_artefact(artefact)

        from guardrail.drift.transport import transport as carry

        loaded, before = _loaded(model, old_model, loading)
        with progress() as report:
            made, figures = carry(
                fitted,
                loaded,
                old_model=before,
                data=data,
                extend=not replace_data,
                batch_size=batch_size,
                work_dir=work_dir,
                progress=report,
            )
        made.save(out)
        if as_json:
            about = {
                "path": str(out),
                "artefact_id": made.artefact_id,
                "parent": made.header.parent,
            }
            write_json(stdout, about | {"transport": figures.model_dump(mode="json")})
        else:
            rows = [("written to", str(out)), ("artefact", made.artefact_id)]
            write_rows(stdout, rows + transport_rows(figures))


def check_data(data: Path | None, replace_data: bool) -> None:
    """Refuse --replace-data without --data."""
    if replace_data and data is None:
        raise typer.BadParameter("--replace-data needs --data: what replaced the prompts?")


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


def _loaded(
    model: str, old_model: str | None, loading: LoadingOptions
) -> tuple[LoadedModel, LoadedModel | None]:
    from guardrail.model.load import load_model

    loaded = load_model(model, **dict(loading))
    if old_model is None:
        return loaded, None
    return loaded, load_model(old_model, **dict(loading.of_another_model()))


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


def show_drift(stdout: TextIO, report: DriftReport) -> None:
    """The verdict with its reasons, then the figures; warnings go to stderr."""
    for warning in report.warnings:
        say(f"warning: {warning}", style="yellow")
    write_rows(stdout, list(_rows(report)))
    width = None if stdout.isatty() else WIDE  # a file has no edge to wrap at
    console = Console(file=stdout, highlight=False, markup=False, width=width)
    if (figures := report.figures) is None:
        return
    for table in (_separations(figures), _rates(figures), _layers(figures)):
        if table.row_count:
            console.print(table)


def transport_rows(figures: TransportFigures) -> list[tuple[str, str]]:
    """A change of basis for people."""
    then = NONE if figures.auroc_fitted is None else f"{figures.auroc_fitted:.3f}"
    return [
        ("basis", f"{figures.moved} of {figures.coordinates} coordinates moved, "
                  f"{figures.flipped} signs flipped (from {figures.source})"),
        ("unexplained", f"{figures.unexplained:.2%}"),
        ("AUROC on text", f"{figures.auroc_before:.3f} before, {figures.auroc_after:.3f} carried "
                          f"over, {then} at the fit"),
        ("mean scores", f"moved by {figures.shift:.3f} text gaps"),
    ]  # fmt: skip


def _rows(report: DriftReport) -> Iterator[tuple[str, str]]:
    yield "verdict", report.verdict
    for reason in report.reasons:
        yield "", reason
    yield "artefact", report.artefact_id
    yield "model", report.model
    changed = [f.field + ("" if f.decides else " (does not decide)") for f in report.fingerprint]
    yield "fingerprint", ", ".join(changed) or "the same"
    if report.figures is not None:
        yield from _measured(report.figures)
    if report.transport is not None:
        yield from transport_rows(report.transport)
        if report.transport.reason is not None:
            yield "no transport", report.transport.reason
    if report.repaired is not None:
        made = report.repaired
        yield "repaired", f"{made.how}: {made.artefact_id}, written to {made.path or NONE}"


def _measured(figures: Figures) -> Iterator[tuple[str, str]]:
    steering = figures.steering
    if steering is not None:
        shifts = (steering.shift_fitted, steering.shift_now, steering.shift_fresh)
        then, now, fresh = (NONE if s is None else f"{s:+.2f}" for s in shifts)
        yield (
            "steering",
            f"layer {steering.layer}: refusal log-odds {now} ({then} at the fit, {fresh} with "
            f"this model's own direction; n = {steering.n})",
        )
    for row in figures.pictures:
        yield (
            f"beside {row.kind}",
            f"safe {row.safe_now:+.2f}, unsafe {row.unsafe_now:+.2f} "
            f"({row.safe_fitted:+.2f}, {row.unsafe_fitted:+.2f} at the fit)",
        )


def _separations(figures: Figures) -> Table:
    """Mean figure first, then each form."""
    table = _table("AUROC on held-out prompts", "form", "n", "at the fit", "old readout now",
                   "same, fitted anew", "best new fit")  # fmt: skip
    whole = figures.separation
    table.add_row(
        "mean", str(whole.n), *map(_estimate, (whole.fitted, whole.old, whole.same, whole.best))
    )
    for row in figures.forms:
        found = map(_estimate, (row.fitted, row.old, row.same, row.best))
        table.add_row(row.form, f"{row.n_unsafe}+{row.n_safe}", *found)
    return table


def _rates(figures: Figures) -> Table:
    table = _table("Shares above the old thresholds", "inputs", "threshold", "target",
                   "at the fit", "now", "p")  # fmt: skip
    for row in figures.rates:
        table.add_row(
            f"{row.label} {row.modality}",
            f"{row.action} {row.threshold:.3f}",
            NONE if row.target is None else f"{row.target:.1%}",
            _share(row.fitted),
            _share(row.now),
            NONE if row.p_value is None else f"{row.p_value:.2g}",
        )
    return table


def _layers(figures: Figures) -> Table:
    table = _table("Old and new direction", "layer", "", "cosine", "gap then", "gap now")
    for row in figures.layers:
        jobs = [job for job, has in (("read", row.read), ("edited", row.edited)) if has]
        cosine = NONE if row.cosine is None else f"{row.cosine:.3f}"
        gaps = f"{row.gap_fitted:.3g}", f"{row.gap_now:.3g}"
        table.add_row(str(row.layer), ", ".join(jobs), cosine, *gaps)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=Text(title), title_justify="left", box=None, pad_edge=False)
    for column in columns:
        table.add_column(column)
    return table


def _estimate(found: Estimate | None) -> str:
    return NONE if found is None else f"{found.value:.3f} ({found.low:.3f}-{found.high:.3f})"


def _share(found: Share | None) -> str:
    if found is None:
        return NONE
    return f"{found.rate:.1%} {found.hits}/{found.n} ({found.low:.1%}-{found.high:.1%})"
