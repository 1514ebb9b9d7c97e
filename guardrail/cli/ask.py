"""`guardrail check` and `guardrail generate`: the verdict on one request, or a guarded answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from guardrail.cli import options as o
from guardrail.cli.inputs import open_guard, read_artefact, read_request
from guardrail.cli.output import (
    exit_code,
    say_verdict,
    session,
    verdict_rows,
    write,
    write_json,
    write_rows,
)
from guardrail.errors import DetectorError, GuardrailViolation
from guardrail.model.source import LoadingOptions

if TYPE_CHECKING:
    from guardrail.guard import Guard
    from guardrail.types import Verdict


def check(
    *,
    model: o.ModelName,
    artefact: o.ArtefactName,
    asked: o.RequestOptions,
    guarding: o.GuardOptions,
    strict: o.Strict = False,
    loading: LoadingOptions,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Score one request; exits with 1 when it is, or in shadow mode would be, flagged."""
    with session(debug=debug) as stdout:
        value = read_request(asked)
        fitted, rules = read_artefact(artefact), guarding.rules()
        with open_guard(model, fitted, rules, guarding, loading) as guard:
            verdict = guard.check(value)
        if as_json:
            write_json(stdout, verdict.to_dict())
        else:
            write_rows(stdout, verdict_rows(verdict))
    raise typer.Exit(exit_code(verdict, strict=strict))


def generate(
    *,
    model: o.ModelName,
    artefact: o.ArtefactName,
    asked: o.RequestOptions,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the answer.")] = 256,
    stream: Annotated[bool, typer.Option("--stream", help="Print words as they come.")] = False,
    guarding: o.GuardOptions,
    strict: o.Strict = False,
    loading: LoadingOptions,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Answer one request under guard: the answer on stdout, the verdict on stderr."""
    if stream and as_json:
        raise typer.BadParameter("--json prints one document at the end; leave --stream out")
    with session(debug=debug) as stdout:
        value = read_request(asked)
        fitted, rules = read_artefact(artefact), guarding.rules()
        with open_guard(model, fitted, rules, guarding, loading) as guard:
            try:
                answer = _streamed if stream else _answered
                verdict = answer(guard, value, max_new_tokens, stdout, as_json)
            except GuardrailViolation as violation:  # policy: on_flag = "raise"
                verdict = violation.verdict
                if as_json:
                    write_json(stdout, {"text": None, "verdict": verdict.to_dict()})
        if not as_json:
            say_verdict(verdict)
    raise typer.Exit(exit_code(verdict, strict=strict))


def _answered(guard: Guard, value: object, limit: int, stdout: TextIO, as_json: bool) -> Verdict:
    result = guard.generate(value, max_new_tokens=limit)
    if as_json:
        document = {
            "text": result.text,
            "verdict": result.verdict.to_dict(),
            "finish_reason": result.finish_reason,
            "prompt_tokens": result.prompt_tokens,
            "completion_tokens": result.completion_tokens,
            "refused_by_guard": result.refused_by_guard,
        }
        write_json(stdout, document)
    else:
        write(stdout, result.text)
    return result.verdict


def _streamed(guard: Guard, value: object, limit: int, stdout: TextIO, _json: bool) -> Verdict:
    chunks = guard.stream(value, max_new_tokens=limit)
    for chunk in chunks:
        write(stdout, chunk, end="")
    write(stdout, "")
    if chunks.verdict is None:
        raise DetectorError("the stream ended without a verdict")
    return chunks.verdict
