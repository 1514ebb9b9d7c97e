"""Options of `guardrail serve`: the model, and what guards it; each has a variable, too."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guardrail.cli.options import MODEL_HELP

ENV = "GUARDRAIL_SERVE_"

Model = Annotated[str, typer.Argument(metavar="MODEL", envvar=f"{ENV}MODEL", help=MODEL_HELP)]
Artefact = Annotated[
    str,
    typer.Option(
        "--artefact",
        "-a",
        metavar="ARTEFACT",
        envvar=f"{ENV}ARTEFACT",
        help="The fitted file, or its hub id.",
    ),
]
Policy = Annotated[
    Path | None,
    typer.Option(
        "--policy",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        envvar=f"{ENV}POLICY",
        help="Rules in TOML, YAML or JSON. Default: GUARDRAIL_POLICY_* variables.",
    ),
]
Device = Annotated[
    str | None,
    typer.Option(envvar=f"{ENV}DEVICE", help="cpu, cuda, cuda:1, ... Default: the best there is."),
]
Dtype = Annotated[
    str,
    typer.Option(
        envvar=f"{ENV}DTYPE", help="float32, bfloat16, ... or auto, the checkpoint's own."
    ),
]
Revision = Annotated[
    str | None,
    typer.Option(envvar=f"{ENV}REVISION", help="A branch, tag or commit on the hub."),
]
