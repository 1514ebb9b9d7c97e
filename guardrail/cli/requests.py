"""What the command line's inputs mean: a policy, a request, benign traffic, an open guard."""

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
from guardrail.errors import ConfigurationError, DatasetError, UnsupportedContentError

if TYPE_CHECKING:
    from guardrail.artefact import Artefact
    from guardrail.guard import Guard
    from guardrail.policy import Policy
    from guardrail.types import Verdict

_BENIGN = {"benign", "harmless", "safe"}
# Keys of a benign line that describe it and are not read.
_ABOUT = {"id", "label", "category", "kind", "form", "pair", "split", "source", "language", "note"}
_PICTURE_KEYS = ("image", "url", "path", "image_url")


def read_policy(path: Path | None) -> Policy:
    """The policy of a file, or of the environment."""
    from guardrail.policy_io import load_policy, policy_from_env

    return policy_from_env() if path is None else load_policy(path)


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


def read_request(text: str | None, images: list[Path] | None, messages: str | None) -> object:
    """The one request that --text, --image and --messages describe."""
    if messages is None:
        if text is None and not images:
            raise typer.BadParameter("nothing to check: give --text, --image or --messages")
        return _turn(text, images or [])
    if text is not None or images:
        raise typer.BadParameter("--messages is a whole chat; leave --text and --image out")
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


def _turn(text: str | None, images: list[Path]) -> object:
    if not images:
        return text
    content: list[dict[str, str]] = [{"type": "image", "image": str(path)} for path in images]
    if text is not None:
        content.append({"type": "text", "text": text})
    return [{"role": "user", "content": content}]


def benign_requests(path: Path) -> Iterator[object]:
    """The requests of a JSONL file, in order; pictures are found relative to the file.

    A line is a string, a chat (a list of messages), or an object with `messages`, or with `text`
    and `image` (one path or several). Labels (id, category, source, ...) are allowed and not read,
    except that a `label` must not say that the line is something else than benign; any other key
    is refused, since it would be lost.

    Raises:
        DatasetError: a line that is none of these; the message names it.
    """
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                yield _benign(line, folder=path.parent, where=f"{path}, line {number}")


def _benign(line: str, *, folder: Path, where: str) -> object:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DatasetError(f"{where}: not JSON ({error})") from error
    match row:
        case str():
            return row
        case list():
            return _beside(row, folder)
        case {"label": label} if label not in _BENIGN:
            raise DatasetError(
                f"{where}: labelled {label!r}; only benign inputs calibrate thresholds"
            )
        case {"messages": list(messages)}:
            _refuse_others(row, {"messages"}, where)
            return _beside(messages, folder)
        case {"image": _} | {"text": _}:
            _refuse_others(row, {"text", "image"}, where)
    match row:
        case {"image": str(image)}:
            return _turn(_text(row, where), [folder / image])
        case {"image": list(images)} if all(isinstance(image, str) for image in images):
            return _turn(_text(row, where), [folder / image for image in images])
        case {"text": str(text)} if "image" not in row:
            return text
    raise DatasetError(
        f"{where}: expected a string, a list of messages, or an object with `messages`, or with "
        "`text` and `image`"
    )


def _refuse_others(row: Mapping[str, object], read: set[str], where: str) -> None:
    if others := sorted(set(row) - read - _ABOUT):
        raise DatasetError(
            f"{where}: {', '.join(map(repr, others))} beside {' and '.join(sorted(read))} would "
            f"not be read; a line has `messages`, or `text` and `image`, and labels such as `id`"
        )


def _beside(messages: list[object], folder: Path) -> list[object]:
    """The chat with its relative picture paths taken from the file's folder."""
    return [
        {**message, "content": [_placed(part, folder) for part in message["content"]]}
        if isinstance(message, dict) and isinstance(message.get("content"), list)
        else message
        for message in messages
    ]


def _placed(part: object, folder: Path) -> object:
    """A picture part with its path in `folder`; other parts, addresses and data as they are."""
    from guardrail.requests.sources import names_a_file

    if not isinstance(part, dict) or part.get("type") not in ("image", "image_url", "input_image"):
        return part
    placed = dict(part)
    for key in _PICTURE_KEYS:
        match part.get(key):
            case str(name) if key == "path" or names_a_file(name):
                placed[key] = str(folder / name)
            case {"url": str(name), **more} if names_a_file(name):
                placed[key] = {**more, "url": str(folder / name)}
    return placed


def _text(row: dict[str, object], where: str) -> str | None:
    text = row.get("text")
    if text is None or isinstance(text, str):
        return text
    raise DatasetError(f"{where}: `text` is a string, not {type(text).__name__}")


def ready_to_write(path: Path) -> None:
    """Fail now, not after an hour of work, when an artefact cannot be written there.

    Raises:
        ConfigurationError: the folder is missing or closed, or the path is itself a folder.
    """
    folder = path.absolute().parent
    if path.is_dir() or not folder.is_dir():
        wrong = "is a folder" if path.is_dir() else f"has no folder {folder}"
        raise ConfigurationError(f"{path} {wrong}; --out names the file to write")
    if not os.access(folder, os.W_OK):
        raise ConfigurationError(f"{folder} is not writable for this user; choose another --out")
