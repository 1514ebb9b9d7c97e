"""What the command line's inputs mean: a policy, a request, an open guard."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from guardrail.audit import AuditLog
from guardrail.cli.options import Loading
from guardrail.cli.output import say
from guardrail.errors import ConfigurationError, UnsupportedContentError
from guardrail.inputs.rows import turn

if TYPE_CHECKING:
    from guardrail.artefact import Artefact
    from guardrail.guard import Guard
    from guardrail.policy import Policy
    from guardrail.types import Verdict


def read_policy(path: Path | None) -> Policy:
    """The policy of a file, or of the environment."""
    from guardrail.policy.files import load_policy, policy_from_env

    return policy_from_env() if path is None else load_policy(path)


def with_sampling(policy: Policy, fps: float | None, window: int | None) -> Policy:
    """The policy with the --fps and --window that were given.

    A rate above the policy's `max_fps` raises that, too.
    """
    sampling = policy.video
    if fps is not None:
        highest = max(sampling.max_fps, fps)
        sampling = sampling.model_copy(update={"fps": fps, "max_fps": highest})
    if window is not None:
        sampling = sampling.model_copy(update={"window": window})
    return policy.model_copy(update={"video": sampling})


def read_artefact(name: str) -> Artefact:
    """An artefact from a file, a folder or a hub repository."""
    from guardrail.artefact import Artefact

    return Artefact.from_pretrained(name)


@contextmanager
def open_guard(
    model: str,
    artefact: Artefact,
    policy: Policy,
    loading: Loading,
    *,
    allow_mismatch: bool,
    audit: Path | None,
) -> Iterator[Guard]:
    """Load the model and put a guard into it, for the block; `audit` is the file for verdicts."""
    with nullcontext() if audit is None else AuditLog(audit) as log:  # fails before a model loads

        def record(verdict: Verdict | None, facts: Mapping[str, object]) -> None:
            if facts.get("event") == "mismatch_allowed":
                _warn_of_mismatch(facts["fields"])
            if log is not None:
                log(verdict, facts)

        from guardrail.guard import Guard

        with Guard.from_pretrained(
            model,
            artefact=artefact,
            policy=policy,
            allow_mismatch=allow_mismatch,
            audit=record,
            **loading.keywords(),
        ) as guard:
            yield guard
        if log is not None and log.dropped:
            say(f"warning: {log.dropped} lines of {audit} were not written", style="yellow")


def _warn_of_mismatch(fields: object) -> None:
    pairs = fields if isinstance(fields, Mapping) else {}
    shown = "; ".join(f"{name}: fitted on {a}, running {b}" for name, (a, b) in pairs.items())
    say(f"warning: the artefact was fitted on another model ({shown})", style="yellow")


def read_request(
    text: str | None,
    images: list[Path] | None,
    messages: str | None,
    videos: list[Path] | None = None,
) -> object:
    """The one request that --text, --image, --video and --messages describe."""
    shown = [*(images or []), *(videos or [])]
    if messages is None:
        if text is None and not shown:
            raise typer.BadParameter(
                "nothing to check: give --text, --image, --video or --messages"
            )
        return turn(text, images or [], videos or [])
    if text is not None or shown:
        raise typer.BadParameter(
            "--messages is a whole chat; leave --text, --image and --video out"
        )
    return _parsed(messages)


def _parsed(messages: str) -> object:
    name = "stdin" if messages == "-" else messages
    try:
        text = sys.stdin.read() if messages == "-" else Path(messages).read_text(encoding="utf-8")
        return json.loads(text)
    except OSError as error:
        raise typer.BadParameter(f"{name}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UnsupportedContentError(f"{name} is not JSON: {error}") from error


def ready_to_write(path: Path) -> None:
    """Fail now, not after an hour of work, when a file cannot be written there.

    Raises:
        ConfigurationError: the folder is missing or closed, or the path is itself a folder.
    """
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir():
        wrong = "is a folder" if path.is_dir() else f"has no folder {folder}"
        raise ConfigurationError(f"{path} {wrong}; name a file to write in a folder that is there")
    if not os.access(folder, os.W_OK):
        raise ConfigurationError(f"{folder} is not writable for this user; choose another place")


def require_pages() -> None:
    """Fail now, not after an hour of work, when pages cannot be drawn.

    Raises:
        MissingExtraError: the extra `report` is not installed.
    """
    from guardrail.extras import require

    for module in ("jinja2", "matplotlib"):
        require(module)
