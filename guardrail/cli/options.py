"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import BaseModel, ConfigDict, Field

from guardrail.policy.policy import Judged

if TYPE_CHECKING:
    from guardrail.policy import Policy

MODEL_HELP = "A folder or hub id of the model."
FILE: dict[str, Any] = {"metavar": "FILE", "exists": True, "dir_okay": False}

ModelName = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP)]
ArtefactName = Annotated[
    str,
    typer.Option("--artefact", "-a", metavar="ARTEFACT", help="The fitted file, or its hub id."),
]
Out = Annotated[
    Path,
    typer.Option("--out", "-o", metavar="OUT", help="The artefact to write; replaced if there."),
]
SteerRate = Annotated[
    float, typer.Option(min=0, max=1, help="Share of benign inputs that may be steered.")
]
FlagRate = Annotated[
    float, typer.Option(min=0, max=1, help="Share of benign inputs that may be flagged.")
]
Strict = Annotated[bool, typer.Option("--strict", help="Exit with 1 when steered, too.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


class Options(BaseModel):
    """Options that go together; each field is one (see `guardrail.cli.derived`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class RequestOptions(Options):
    """One request."""

    text: str | None = Field(
        default=None, description="The prompt.", json_schema_extra={"short": "-t"}
    )
    images: tuple[Path, ...] = Field(
        default=(), description="A picture; repeatable.", json_schema_extra=FILE | {"short": "-i"}
    )
    videos: tuple[Path, ...] = Field(
        default=(), description="A video; repeatable.", json_schema_extra=FILE
    )
    messages: str | None = Field(
        default=None,
        description="A chat as a JSON list; - reads stdin.",
        json_schema_extra={"metavar": "FILE|-"},
    )


class GuardOptions(Options):
    """A guard's rules, and what it keeps of its verdicts."""

    fps: float | None = Field(
        default=None,
        ge=0.01,
        le=60,
        description="Frames judged a second of a video; the policy's if left out.",
    )
    window: int | None = Field(
        default=None, ge=1, le=256, description="Frames judged together; the policy's if left out."
    )
    judged: tuple[Judged, ...] = Field(  # the policy's `judge`; an evaluation has a judge, too
        default=(),
        description="Messages judged word by word; repeatable. The policy's if left out.",
    )
    policy: Path | None = Field(
        default=None,
        description="Rules in TOML, YAML or JSON. Default: GUARDRAIL_POLICY_* variables.",
        json_schema_extra=FILE,
    )
    allow_mismatch: bool = Field(
        default=False,
        description="Use an artefact that was fitted on another checkpoint.",
        json_schema_extra={"env": None},
    )
    audit: Path | None = Field(
        default=None,
        description="Append each verdict as a JSON line, without what was asked.",
        json_schema_extra={"metavar": "FILE", "dir_okay": False},
    )

    def rules(self) -> Policy:
        """The policy of the file or of the environment, with what was given here.

        A rate above the policy's `max_fps` raises that, too.
        """
        from guardrail.policy.files import load_policy, policy_from_env

        policy = policy_from_env() if self.policy is None else load_policy(self.policy)
        sampling = policy.video
        if self.fps is not None:
            highest = max(sampling.max_fps, self.fps)
            sampling = sampling.model_copy(update={"fps": self.fps, "max_fps": highest})
        if self.window is not None:
            sampling = sampling.model_copy(update={"window": self.window})
        judge = frozenset(self.judged) or policy.judge
        return policy.model_copy(update={"video": sampling, "judge": judge})
