"""The `guardrail` program. Nothing here or in the command modules loads a tensor library early."""

from __future__ import annotations

from typing import Annotated

import typer

from guardrail import __version__
from guardrail.cli.ask import check, generate
from guardrail.cli.attack import attack
from guardrail.cli.calibrate import calibrate
from guardrail.cli.cluster import cluster
from guardrail.cli.conform import conform
from guardrail.cli.derived import with_options
from guardrail.cli.drift import drift, transport
from guardrail.cli.evaluate import evaluate
from guardrail.cli.explain import explain
from guardrail.cli.fit import fit
from guardrail.cli.info import info
from guardrail.cli.mcp import mcp
from guardrail.cli.monitor import monitor
from guardrail.cli.score import score
from guardrail.cli.serve import serve
from guardrail.cli.vllm_options import vllm_options

app = typer.Typer(
    name="guardrail",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Find, calibrate and run a guard inside the prefill of a vision-language model.",
    epilog="Exit codes: 0 fine; 1 a finding (a flagged request, a missed bound, a shift, a drift); "
    "2 wrong usage or an error.",
)
for _command in (
    fit,
    calibrate,
    check,
    generate,
    score,
    serve,
    mcp,
    vllm_options,
    info,
    evaluate,
    attack,
    explain,
    monitor,
    drift,
    transport,
    conform,
):
    app.command()(with_options(_command))
app.add_typer(cluster, name="cluster")


def _show_version(asked: bool) -> None:
    if asked:
        typer.echo(f"guardrail-vlm {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    pass
