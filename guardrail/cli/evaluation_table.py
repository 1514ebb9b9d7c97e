"""An evaluation on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from guardrail.evaluation.schema import Controls, Group, Report
    from guardrail.stats import Estimate, Share


_WIDE = 200  # columns, where there is no terminal to fit


def show_evaluation(stdout: TextIO, report: Report) -> None:
    """The figures of a report as tables, each with its n and 95 % interval."""
    width = None if stdout.isatty() else _WIDE
    console = Console(file=stdout, highlight=False, width=width)
    artefact = report.artefact.get("artefact_id", "")
    console.print(Text(_clean(f"{report.model}, {artefact}, {report.policy.get('mode')} mode")))
    tables = [_separation(report), _rates(report), _found_by(report), _controls(report)]
    tables += _small(report)
    for table in tables:
        console.print()
        console.print(table)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None)
    for number, column in enumerate(columns):
        table.add_column(column, overflow="fold", justify="left" if number == 0 else "right")
    return table


def _separation(report: Report) -> Table:
    table = _table(
        "separation (95 % intervals)",
        "inputs",
        "n harmful",
        "n harmless",
        "AUROC",
        "AP",
        "TPR at 1 %",
        "at 5 %",
        "at 10 % FPR",
    )
    for group in report.groups:
        found = group.separation
        counts = f"{group.n_harmful}", f"{group.n_harmless}"
        if found is None:
            table.add_row(_name(group), *counts, "one label only")
            continue
        if group.against != "itself":
            counts = f"{found.n_harmful}", f"{found.n_harmless}"
        table.add_row(
            _name(group),
            *counts,
            _estimate(found.auroc),
            _estimate(found.average_precision),
            *(_share(share, n=False) for share in found.tpr_at_fpr.values()),
        )
    return table


def _rates(report: Report) -> Table:
    table = _table(
        "actions and refusals",
        "inputs",
        "label",
        "n",
        "steered",
        "flagged",
        "refused, plain",
        "refused or flagged, guarded",
    )
    for group in report.groups:
        for label, actions in group.actions.items():
            refusals = group.refusals.get(label)
            table.add_row(
                _name(group),
                label,
                f"{actions.passed.n}",
                _share(actions.steered, n=False),
                _share(actions.flagged, n=False),
                *(
                    [_share(refusals.plain, n=False), _share(refusals.guarded, n=False)]
                    if refusals
                    else ["-", "-"]
                ),
            )
    return table


def _found_by(report: Report) -> Table:
    table = _table(
        "where harmful inputs were found, of those steered or flagged",
        "inputs",
        "n",
        "end of the prompt",
        "an earlier turn",
        "within a message",
    )
    for group in report.groups:
        if shares := group.found_by:
            found = [_share(shares[name], n=False) for name in ("last", "turn", "window")]
            table.add_row(_name(group), f"{shares['last'].n}", *found)
    return table


def _controls(report: Report) -> Table:
    table = _table("controls (AUROC)", "control", *(c.modality for c in report.controls))
    names = {
        "the guard": lambda c: _estimate(c.guard),
        "random directions": _random,
        "permuted labels": _permuted,
        "words alone": lambda c: c.text_baseline and _estimate(c.text_baseline.auroc),
        "length alone, either way": lambda c: c.length_only and f"{c.length_only.either_way:.3f}",
        "the guard, lengths matched": _matched,
    }
    for name, read in names.items():
        table.add_row(name, *(read(one) or "too few" for one in report.controls))
    return table


def _random(one: Controls) -> str | None:
    found = one.random_directions
    return None if found is None else f"{found.mean:.3f} (sd {found.sd:.3f}, n {len(found.aurocs)})"


def _permuted(one: Controls) -> str | None:
    found = one.permuted_labels
    return (
        None
        if found is None
        else f"{found.mean:.3f}, at most {found.highest:.3f}, p {found.p_value:.3g}"
    )


def _matched(one: Controls) -> str | None:
    found = one.length_matched
    return None if found is None else f"{_estimate(found.auroc)}, {found.pairs} pairs"


def _small(report: Report) -> list[Table]:
    tables = []
    if (cost := report.quality) is not None:
        table = _table(f"harmless inputs that are answered (n {cost.n}, steered {cost.n_steered})")
        table.add_column("figure")
        table.add_column("value", justify="right")
        table.add_row("first-token KL, nats", f"{cost.kl:.4f}")
        table.add_row("answers equal to the plain ones", _share(cost.exact_match))
        table.add_row("length, guarded over plain", f"{cost.length_ratio:.3f}")
        tables.append(table)
    if (judge := report.judge) is not None:
        table = _table(f"judge: {judge.name}, on {judge.sample}", "error", "share")
        for name, share in (
            ("answers called a refusal", judge.false_refusals),
            ("refusals missed", judge.missed_refusals),
        ):
            table.add_row(name, "none labelled" if share is None else _share(share))
        tables.append(table)
    table = _table("time", "stage", "s", "n", "from the work folder")
    for one in report.timings:
        table.add_row(one.stage, f"{one.seconds:.1f}", f"{one.n}", f"{one.cached}")
    return [*tables, table]


def _clean(text: str) -> str:
    """Names out of the data may hold terminal commands."""
    return "".join(sign if sign.isprintable() else "\ufffd" for sign in text)


def _name(group: Group) -> Text:
    shown = group.modality if group.by == "modality" else f"  {group.by} {group.name}"
    return Text(_clean(shown))


def _estimate(found: Estimate) -> str:
    return f"{found.value:.3f} ({found.low:.3f}-{found.high:.3f})"


def _share(share: Share, *, n: bool = True) -> str:
    counts = f"{share.hits}/{share.n}, " if n else ""
    return f"{share.rate:.3f} ({counts}{share.low:.3f}-{share.high:.3f})"
