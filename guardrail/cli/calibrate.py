"""`guardrail calibrate`: thresholds from your own benign traffic."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guardrail.cli import options as o
from guardrail.cli.output import session
from guardrail.cli.report import show_artefact
from guardrail.cli.requests import (
    benign_requests,
    open_guard,
    read_artefact,
    read_policy,
    ready_to_write,
)


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
        values = list(benign_requests(benign))  # a malformed line ends this before a model loads
        fitted, rules = read_artefact(artefact), read_policy(policy)

        from guardrail.fit.calibrate import calibrate as run_calibrate

        with open_guard(
            model, fitted, rules, loading, allow_mismatch=allow_mismatch, audit=audit
        ) as guard:
            made = run_calibrate(guard, values, steer_rate=steer_rate, flag_rate=flag_rate)
        made.save(out)
        show_artefact(stdout, made, as_json=as_json, path=out)
