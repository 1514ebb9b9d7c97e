"""What the command line's inputs mean: a policy, a request, benign traffic, an open guard."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from guardrail.cli.options import Loading
from guardrail.errors import ConfigurationError, DatasetError, UnsupportedContentError

if TYPE_CHECKING:
    from guardrail.artefact import Artefact
    from guardrail.guard import Guard
    from guardrail.policy import Policy

_BENIGN = {"benign", "harmless", "safe"}


def read_policy(path: Path | None) -> Policy:
    """The policy of a file, or of the environment."""
    from guardrail.policy_io import load_policy, policy_from_env

    return policy_from_env() if path is None else load_policy(path)


def read_artefact(name: str) -> Artefact:
    """An artefact from a file, a folder or a hub repository."""
    from guardrail.artefact import Artefact

    return Artefact.from_pretrained(name)


def open_guard(
    model: str, artefact: Artefact, policy: Policy, loading: Loading, *, allow_mismatch: bool
) -> Guard:
    """Load the model and put a guard into it."""
    from guardrail.guard import Guard

    return Guard.from_pretrained(
        model,
        artefact=artefact,
        policy=policy,
        allow_mismatch=allow_mismatch,
        **loading.keywords(),
    )


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
    and `image` (one path or several). Further keys describe and are not read, except that a `label`
    must not say that the line is something else than benign.

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
        case str() | list():
            return row
        case {"label": label} if label not in _BENIGN:
            raise DatasetError(
                f"{where}: labelled {label!r}; only benign inputs calibrate thresholds"
            )
        case {"messages": list(messages)}:
            return messages
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
