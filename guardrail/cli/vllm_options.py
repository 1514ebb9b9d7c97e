"""`guardrail vllm-options`: what vLLM is started with to run with the guard inside."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from guardrail.cli import options as o
from guardrail.cli.derived import Derived
from guardrail.cli.output import session, write

_RULES = Derived(only=frozenset({"policy", "judged", "allow_mismatch", "audit"}))


def vllm_options(
    *,
    artefact: o.ArtefactName,
    guarding: Annotated[o.GuardOptions, _RULES],
    expose_scores: Annotated[
        bool, typer.Option("--expose-scores", help="Tell clients scores and thresholds, too.")
    ] = False,
    debug: o.Debug = False,
) -> None:
    """Print options of `vllm serve MODEL`, for `$(guardrail vllm-options -a ARTEFACT)`.

    Everybody's words are judged, system prompts' and answers', too, unless --policy or --judged say
    otherwise: clients of vLLM can forge roles.
    """
    with session(debug=debug) as stdout:
        from guardrail.vllm import engine_options
        from guardrail.vllm.options import EVERYBODY, MIDDLEWARE

        rules = guarding.rules()
        if not guarding.judged and guarding.policy is None:
            rules = rules.model_copy(update={"judge": EVERYBODY})
        given = engine_options(
            artefact,
            rules,
            allow_mismatch=guarding.allow_mismatch,
            scores=expose_scores,
            audit=guarding.audit,
        )
        for name, value in {**given, "middleware": MIDDLEWARE}.items():
            # A shell takes what a program printed apart at its spaces, and has no ear for quotes.
            told = value if isinstance(value, str) else json.dumps(value, separators=(",", ":"))
            shown = told.replace(" ", "\\u0020")
            write(stdout, f"--{name.replace('_', '-')}={shown}")
