"""Options that several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

MODEL_HELP = "A folder or hub id of the model."

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
ArtefactName = Annotated[
    str,
    typer.Option("--artefact", "-a", metavar="ARTEFACT", help="The fitted file, or its hub id."),
]
Out = Annotated[
    Path,
    typer.Option("--out", "-o", metavar="OUT", help="The artefact to write; replaced if there."),
]
PolicyFile = Annotated[
    Path | None,
    typer.Option(
        "--policy",
        metavar="FILE",
        exists=True,
        dir_okay=False,
        help="Rules in TOML, YAML or JSON. Default: GUARDRAIL_POLICY_* variables.",
    ),
]
Text = Annotated[str | None, typer.Option("--text", "-t", help="The prompt.")]
Images = Annotated[
    list[Path] | None,
    typer.Option(
        "--image", "-i", metavar="FILE", exists=True, dir_okay=False, help="A picture; repeatable."
    ),
]
Videos = Annotated[
    list[Path] | None,
    typer.Option(
        "--video", metavar="FILE", exists=True, dir_okay=False, help="A video; repeatable."
    ),
]
Fps = Annotated[
    float | None,
    typer.Option(
        min=0.01, max=60, help="Frames judged a second of a video; the policy's if left out."
    ),
]
WindowFrames = Annotated[
    int | None,
    typer.Option(
        "--window", min=1, max=256, help="Frames judged together; the policy's if left out."
    ),
]
Messages = Annotated[
    str | None,
    typer.Option("--messages", metavar="FILE|-", help="A chat as a JSON list; - reads stdin."),
]
SteerRate = Annotated[
    float,
    typer.Option(min=0, max=1, help="Share of benign inputs that may be steered."),
]
FlagRate = Annotated[
    float,
    typer.Option(min=0, max=1, help="Share of benign inputs that may be flagged."),
]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 1 when steered, too.")]
Device = Annotated[
    str | None, typer.Option(help="cpu, cuda, cuda:1, ... Default: the best there is.")
]
Dtype = Annotated[str, typer.Option(help="float32, bfloat16, ... or auto, the checkpoint's own.")]
Revision = Annotated[str | None, typer.Option(help="A branch, tag or commit on the hub.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run the code the model brings along.")
]
AllowMismatch = Annotated[
    bool,
    typer.Option("--allow-mismatch", help="Use an artefact that was fitted on another checkpoint."),
]
AuditFile = Annotated[
    Path | None,
    typer.Option(
        "--audit",
        metavar="FILE",
        dir_okay=False,
        help="Append each verdict as a JSON line, without what was asked.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """How a model is loaded; the keywords of `load_model`."""

    device: str | None
    dtype: str
    revision: str | None
    trust_remote_code: bool

    def of_another_model(self) -> dict[str, Any]:
        """The same for a second model: a revision is the first one's alone."""
        return self.keywords() | {"revision": None}

    def keywords(self) -> dict[str, Any]:
        """As keyword arguments."""
        return {
            "device": self.device,
            "dtype": self.dtype,
            "revision": self.revision,
            "trust_remote_code": self.trust_remote_code,
        }
