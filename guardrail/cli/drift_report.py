"""A drift report for people, on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from guardrail.cli.output import say, write_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from guardrail.drift.schema import (
        DriftReport,
        Figures,
        TransportFigures,
    )
    from guardrail.stats import Estimate, Share

NONE, WIDE = "-", 140


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
    for offset in figures.offsets:
        yield f"offset {offset.kind}", f"{offset.now:.3f} ({offset.fitted:.3f} at the fit)"


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
