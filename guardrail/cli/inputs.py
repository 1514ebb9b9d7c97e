"""What the command line's inputs mean: a request, an artefact, an open guard."""

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
from guardrail.cli.output import say
from guardrail.errors import ConfigurationError, UnsupportedContentError
from guardrail.inputs.rows import turn

if TYPE_CHECKING:
    from guardrail.artefact import Artefact
    from guardrail.cli.options import GuardOptions, RequestOptions
    from guardrail.guard import Guard
    from guardrail.model.source import LoadingOptions
    from guardrail.policy import Policy
    from guardrail.types import Verdict


def read_artefact(name: str) -> Artefact:
    """An artefact from a file, a folder or a hub repository."""
    from guardrail.artefact import Artefact

    return Artefact.from_pretrained(name)


@contextmanager
def open_guard(
    model: str,
    artefact: Artefact,
    policy: Policy,
    options: GuardOptions,
    loading: LoadingOptions,
) -> Iterator[Guard]:
    """Load the model and put a guard into it, for the block; `policy` is that of the `options`."""
    audit = options.audit
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
            allow_mismatch=options.allow_mismatch,
            audit=record,
            **dict(loading),
        ) as guard:
            yield guard
        if log is not None and log.dropped:
            say(f"warning: {log.dropped} lines of {audit} were not written", style="yellow")


def _warn_of_mismatch(fields: object) -> None:
    pairs = fields if isinstance(fields, Mapping) else {}
    shown = "; ".join(f"{name}: fitted on {a}, running {b}" for name, (a, b) in pairs.items())
    say(f"warning: the artefact was fitted on another model ({shown})", style="yellow")


def read_request(asked: RequestOptions) -> object:
    """The one request that --text, --image, --video and --messages describe."""
    shown = [*asked.images, *asked.videos]
    if asked.messages is None:
        if asked.text is None and not shown:
            raise typer.BadParameter(
                "nothing to check: give --text, --image, --video or --messages"
            )
        return turn(asked.text, asked.images, asked.videos)
    if asked.text is not None or shown:
        raise typer.BadParameter(
            "--messages is a whole chat; leave --text, --image and --video out"
        )
    return _parsed(asked.messages)


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
    from guardrail.extras import require_extra

    require_extra("report")
