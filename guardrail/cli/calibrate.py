"""`guardrail calibrate`: thresholds from your own benign traffic."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from guardrail.cli import options as o
from guardrail.cli.benign import benign_lines, count_benign
from guardrail.cli.output import progress, say, session
from guardrail.cli.report import show_artefact
from guardrail.cli.requests import (
    open_guard,
    read_artefact,
    read_policy,
    ready_to_write,
    with_sampling,
)
from guardrail.cli.thresholds import show_thresholds


def calibrate(
    artefact: Annotated[
        str, typer.Argument(metavar="ARTEFACT", help="The artefact to start from.")
    ],
    model: Annotated[str, typer.Option("--model", "-m", metavar="MODEL", help=o.MODEL_HELP)],
    benign: Annotated[
        Path,
        typer.Option(
            metavar="FILE", exists=True, dir_okay=False, help="Benign requests, one JSON a line."
        ),
    ],
    out: o.Out,
    steer_rate: o.SteerRate = 0.05,
    flag_rate: o.FlagRate = 0.01,
    keep: Annotated[
        int, typer.Option(min=1, help="Scores kept of each modality; more are sampled from.")
    ] = 10_000,
    seed: Annotated[int, typer.Option(help="Of the sample, where one is drawn.")] = 0,
    skip_errors: Annotated[
        bool,
        typer.Option("--skip-errors", help="Leave out what cannot be scored, up to 1 %."),
    ] = False,
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
    """Set ARTEFACT's thresholds on your own benign requests and write a new artefact."""
    loading = o.Loading(
        device=device, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code
    )
    with session(debug=debug) as stdout:
        ready_to_write(out)
        total = count_benign(benign)  # a line that cannot be used ends this before a model loads
        say(f"{total} requests in {benign}")
        fitted, rules = read_artefact(artefact), with_sampling(read_policy(policy), fps, window)

        from guardrail.fit.calibrate import calibrate as run_calibrate

        with (
            open_guard(
                model, fitted, rules, loading, allow_mismatch=allow_mismatch, audit=audit
            ) as guard,
            progress() as report,
        ):
            made = run_calibrate(
                guard,
                _requests(benign, total, report),
                steer_rate=steer_rate,
                flag_rate=flag_rate,
                keep=keep,
                seed=seed,
                skip_errors=skip_errors,
            )
        made.save(out)
        show_artefact(stdout, made, as_json=as_json, path=out)
        if not as_json:
            show_thresholds(stdout, made, before=fitted)


def _requests(path: Path, total: int, report: Callable[[str, int, int], None]) -> Iterator[object]:
    """The file's requests with their places; lines added since they were counted are left out."""
    from guardrail.fit.traffic import Placed

    for done, (where, request) in enumerate(islice(benign_lines(path), total), start=1):
        yield Placed(where, request)
        report("requests read", done, total)
