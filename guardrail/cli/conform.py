"""`guardrail conform`: does a guard work inside this model?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from guardrail.cli import options as o
from guardrail.cli.output import FINDING, progress, session, write, write_json
from guardrail.model.source import LoadingOptions

if TYPE_CHECKING:
    from guardrail.conformance import Report


def conform(
    *,
    model: o.ModelName,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="CHECK", help="This check; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random directions.")] = 0,
    loading: LoadingOptions,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Check the guard against slow references on a model; exits with 1 when it does not work.

    A `no` is the guard's own clear refusal, and a finding unless a guard can do without (videos);
    `n/a` is what the model itself cannot do.
    """
    with session(debug=debug) as stdout:
        from guardrail.conformance import check_model
        from guardrail.model.load import load_model

        with progress() as step:
            loaded = load_model(model, **dict(loading))
            report = check_model(loaded, names=only, seed=seed, progress=step)
        if as_json:
            write_json(stdout, report.model_dump(mode="json"))
        else:
            _show(stdout, report)
    raise typer.Exit(0 if report.works else FINDING)


def _show(stdout: TextIO, report: Report) -> None:
    """One line a check, with the reason of everything but a `yes`."""
    packages = ", ".join(f"{name} {number}" for name, number in report.packages.items())
    write(stdout, f"{report.architecture}: {report.layers} layers, {report.dtype} ({packages})")
    for check in report.checks:
        reason = f"  {check.reason}" if check.reason else ""
        write(stdout, f"{check.name:<12} {check.outcome:<7} {check.title}{reason}")
    if report.works:
        write(stdout, "a guard works inside this model, as far as these checks say")
    else:
        wrong = ", ".join(check.name for check in report.failed)
        write(stdout, f"a guard does not work inside this model{wrong and f'; wrong: {wrong}'}")
