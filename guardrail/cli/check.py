"""`guardrail check`: the verdict on one request, without an answer."""

from __future__ import annotations

import typer

from guardrail.cli import options as o
from guardrail.cli.output import exit_code, session, verdict_rows, write_json, write_rows
from guardrail.cli.requests import (
    open_guard,
    read_artefact,
    read_policy,
    read_request,
    with_sampling,
)


def check(
    model: o.ModelName,
    artefact: o.ArtefactName,
    text: o.Text = None,
    image: o.Images = None,
    video: o.Videos = None,
    messages: o.Messages = None,
    fps: o.Fps = None,
    window: o.WindowFrames = None,
    policy: o.PolicyFile = None,
    strict: o.Strict = False,
    device: o.Device = None,
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
    allow_mismatch: o.AllowMismatch = False,
    audit: o.AuditFile = None,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Score one request; exits with 1 when it is, or in shadow mode would be, flagged."""
    loading = o.Loading(
        device=device, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code
    )
    with session(debug=debug) as stdout:
        value = read_request(text, image, messages, video)
        fitted, rules = read_artefact(artefact), with_sampling(read_policy(policy), fps, window)
        with open_guard(
            model, fitted, rules, loading, allow_mismatch=allow_mismatch, audit=audit
        ) as guard:
            verdict = guard.check(value)
        if as_json:
            write_json(stdout, verdict.to_dict())
        else:
            write_rows(stdout, verdict_rows(verdict))
    raise typer.Exit(exit_code(verdict, strict=strict))
