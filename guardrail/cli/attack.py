"""`guardrail attack`: what the guard holds against somebody who wants through."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from guardrail.cli import options as o
from guardrail.cli.inputs import open_guard, read_artefact, require_pages
from guardrail.cli.output import progress, say, session, write_json
from guardrail.errors import ConfigurationError
from guardrail.model.source import LoadingOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.attack.making import Input
    from guardrail.attack.schema import AttackReport, AttackRow
    from guardrail.policy import Policy
    from guardrail.stats import Share

REPORT, PAGE, WORK = "attack.json", "attack.html", "work"
_WIDE = 200  # columns, where there is no terminal to fit


def attack(
    *,
    model: o.ModelName,
    artefact: o.ArtefactName,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            "-d",
            metavar="FILE",
            exists=True,
            dir_okay=False,
            help="Harmful requests (JSONL); rows labelled harmless are benign inputs. Default: "
            "packaged prompts.",
        ),
    ] = None,
    benign: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", exists=True, dir_okay=False, help="Benign inputs, the control (JSONL)."
        ),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only these attacks; repeatable."),
    ] = None,
    own: Annotated[
        list[str] | None,
        typer.Option("--attack", metavar="MODULE:CLASS", help="Your own attack, too; repeatable."),
    ] = None,
    aims: Annotated[
        list[str] | None,
        typer.Option("--aim", metavar="READING", help="What searches are told; default joint."),
    ] = None,
    questions: Annotated[int, typer.Option(min=1, help="A search may ask about an input.")] = 200,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="A search may take for an input.")
    ] = 120.0,
    seed: Annotated[int, typer.Option(help="The same seed gives the same run.")] = 0,
    searched: Annotated[int, typer.Option(min=1, help="Inputs that are searched for.")] = 20,
    gradients: Annotated[
        int, typer.Option(min=1, help="Inputs that gradients are followed for.")
    ] = 8,
    plain: Annotated[
        int, typer.Option(min=0, help="Attacked inputs that the model answers without a guard.")
    ] = 10,
    new_tokens: Annotated[int, typer.Option(min=1, help="Length of each answer.")] = 16,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="DIR",
            file_okay=False,
            help="Write attack.json and attack.html there, and keep what is asked (in plain): a "
            "run that was interrupted goes on.",
        ),
    ] = None,
    content: Annotated[
        bool, typer.Option("--content", help="Show each attack's most successful input.")
    ] = False,
    batch_size: Annotated[int, typer.Option(min=1, help="Inputs in one forward pass.")] = 16,
    guarding: o.GuardOptions,
    loading: LoadingOptions,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Attack the guard, and say what it still finds: of each attack, by each of its readings.

    No attack is anybody's text: requests are yours or the packaged ones, and what is done to them
    is a rule or a search.
    """
    with session(debug=debug) as stdout:
        if out is not None:
            require_pages()
            _folder(out)

        from guardrail.attack.attacks import find, known
        from guardrail.attack.making import Settings
        from guardrail.attack.run import attack as run_attack

        names = [*(only or ([] if own else known())), *(own or [])]
        for name in names:
            find(name)  # before a model loads
        rules = guarding.rules()
        settings = Settings(
            questions=questions,
            seconds=seconds,
            seed=seed,
            aims=tuple(aims or ("joint",)),  # type: ignore[arg-type]  # it refuses what is none
            searched=searched,
            gradients=gradients,
            answers=plain,
            new_tokens=new_tokens,
            batch_size=batch_size,
        )
        harmful, harmless = _inputs(data, benign, rules)
        fitted = read_artefact(artefact)
        with open_guard(model, fitted, rules, guarding, loading) as guard, progress() as bars:
            report = run_attack(
                guard,
                harmful,
                harmless,
                names=names,
                settings=settings,
                work_dir=None if out is None else out / WORK,
                content=content,
                progress=bars,
            )
        if data is None:
            said = (
                "the requests are packaged contrast prompts, on which the guard's layers and "
                "thresholds were chosen: it looks better on them than on yours"
            )
            report = report.model_copy(update={"warnings": (said, *report.warnings)})
        if out is not None:
            _write(report, out)
        _show(stdout, report, as_json=as_json)


def _folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"{out} cannot be made ({error.strerror}); choose another folder"
        ) from error


def _inputs(
    data: Path | None, benign: Path | None, rules: Policy
) -> tuple[Sequence[Input], Sequence[Input]]:
    """Harmful and benign inputs; benign ones are packaged where the harmful ones are."""
    from guardrail.attack.run import load_inputs, packaged_inputs

    harmful, harmless = packaged_inputs(rules) if data is None else load_inputs(data, rules)
    if benign is not None:
        labelled, unlabelled = load_inputs(benign, rules)
        own = [*labelled, *unlabelled]  # the option says what they are
        harmless = own if data is None else [*harmless, *own]
    return harmful, harmless


def _write(report: AttackReport, out: Path) -> None:
    from guardrail.artefact.file import write_atomically
    from guardrail.report.attack import attack_page
    from guardrail.report.page import write_page

    write_atomically(out / REPORT, report.model_dump_json(indent=1).encode() + b"\n")
    write_page(out / PAGE, attack_page(report))
    for name in (REPORT, PAGE):
        say(f"written: {out / name}")


def _show(stdout: TextIO, report: AttackReport, *, as_json: bool) -> None:
    for warning in report.warnings:
        say(f"warning: {warning}", style="yellow")
    if as_json:
        write_json(stdout, report.model_dump(mode="json"))
        return
    console = Console(file=stdout, highlight=False, width=None if stdout.isatty() else _WIDE)
    console.print(Text(f"{report.model}, {report.artefact_id}"))
    table = Table(
        title="flagged or steered (95 % intervals)",
        title_justify="left",
        box=None,
        show_lines=False,
    )
    table.add_column("attack", overflow="fold")
    heads = ("flagged or steered", "lost", "at 5 % FPR", "benign hit", "complied, plain", "through")
    for head in heads:
        table.add_column(head, justify="right")
    for row in report.rows:
        table.add_row(row.title, *_cells(row))
    console.print(table)


def _cells(row: AttackRow) -> list[str]:
    joint = row.readings.get("joint")
    found = None if joint is None else joint.found.get("0.05")
    shares = (row.hit, row.lost, found, row.benign_hit, row.complied, row.through)
    return [_share(each) for each in shares]


def _share(found: Share | None) -> str:
    if found is None:
        return "-"
    return f"{found.rate:.2f} ({found.low:.2f}-{found.high:.2f}, n = {found.n})"
