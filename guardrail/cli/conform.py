"""`guardrail conform`: does a guard work inside this model?"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from guardrail.cli import options as o
from guardrail.cli.inputs import ready_to_write
from guardrail.cli.output import FINDING, progress, session, write, write_json
from guardrail.model.source import LoadingOptions

if TYPE_CHECKING:
    from guardrail.conformance import Report


class Engine(StrEnum):
    """What runs the model."""

    TRANSFORMERS = "transformers"
    VLLM = "vllm"


def conform(
    *,
    model: o.ModelName,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="CHECK", help="This check; repeatable.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random directions.")] = 0,
    engine: Annotated[
        Engine, typer.Option(help="vllm compares an artefact's scores there with transformers'.")
    ] = Engine.TRANSFORMERS,
    artefact: Annotated[
        str | None,
        typer.Option("--artefact", "-a", metavar="ARTEFACT", help="For --engine vllm."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="For --engine vllm: the artefact with the result."),
    ] = None,
    loading: LoadingOptions,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Check the guard against slow references on a model; exits with 1 when it does not work.

    A `no` is the guard's own clear refusal, and a finding unless a guard can do without (videos);
    `n/a` is what the model itself cannot do.
    """
    with session(debug=debug) as stdout:
        if engine is Engine.VLLM:
            raise typer.Exit(_compared(stdout, model, artefact, out, loading, as_json=as_json))
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


def _compared(
    stdout: TextIO,
    model: str,
    artefact: str | None,
    out: Path | None,
    loading: LoadingOptions,
    *,
    as_json: bool,
) -> int:
    """The exit code of a comparison with vLLM, in the precision of `--dtype`."""
    if artefact is None:
        raise typer.BadParameter("--engine vllm compares scores: give an --artefact")
    if out is not None:
        ready_to_write(out)
    from guardrail.vllm.parity import Conclusion, compare

    options = {"dtype": loading.dtype, "trust_remote_code": loading.trust_remote_code}
    fitted = {**dict(loading), "dtype": "auto"}
    found, revised = compare(model, Path(artefact), options=options, **fitted)
    if out is not None:
        revised.save(out)
    if as_json:
        write_json(stdout, found.model_dump(mode="json") | {"conclusion": str(found.conclusion)})
    else:
        write(
            stdout,
            f"{found.engine}, {found.dtype}: {found.texts} texts, {found.pictures} pictures; "
            f"scores apart by {found.score_apart:.1e} text gaps "
            f"(its own two runs: {found.noise:.1e}), "
            f"{found.changed} verdicts changed; first tokens' log-probabilities by "
            f"{found.logprob_apart:.1e} ({found.steered} steered): {found.conclusion}",
        )
    return 0 if found.conclusion is Conclusion.PASS else FINDING


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
