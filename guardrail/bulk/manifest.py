"""The file that ties verdicts to what they are of: source, artefact, policy, columns, model."""

from __future__ import annotations

import json
import os
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from guardrail.errors import ConfigurationError
from guardrail.requests.strict_json import strict_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

NAME = "_manifest.json"  # readers of a folder of Parquet pass over names with an underscore
FORMAT = 1


def read_manifest(out: Path) -> dict[str, Any] | None:
    """What an earlier run wrote; None where there was none.

    Raises:
        ConfigurationError: the folder holds something else, or the manifest is damaged.
    """
    path = out / NAME
    if not path.exists():
        others = sorted(name for name in os.listdir(out) if not name.startswith("."))
        if others and NAME not in others:  # it may have come since
            raise ConfigurationError(
                f"{out} holds {others[0]!r} and no {NAME}, so it is of no run; choose a new folder"
            )
        if not others:
            return None
    try:
        found = strict_json(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise _damaged(path) from error
    if not isinstance(found, dict) or not isinstance(found.get("source"), dict):
        raise _damaged(path)
    return found


def write_manifest(out: Path, facts: Mapping[str, Any]) -> None:
    """Put the manifest there in one step, unless another process was first: then compare.

    Raises:
        ConfigurationError: the other process scores something else.
    """
    text = json.dumps(facts, indent=1, sort_keys=True) + "\n"
    temporary = out / f".{NAME}.{secrets.token_hex(6)}.tmp"
    try:
        with temporary.open("x", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(temporary, out / NAME)  # unlike a rename, it never replaces
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()
    require_same(out, read_manifest(out) or {}, facts)


def require_same(out: Path, there: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Refuse to go on with other facts than those that the folder's verdicts are of.

    Raises:
        ConfigurationError: naming what differs.
    """
    plain = json.loads(json.dumps(facts))
    differing = [
        f"{name} was {_short(a)}, is {_short(b)}"
        for name, a, b in _differences({k: there.get(k) for k in plain}, plain, "")
    ]
    if differing:
        shown = "; ".join(differing[:5])
        raise ConfigurationError(
            f"{out} holds verdicts of another run ({shown}); start with what it was started with, "
            "or choose a new folder"
        )


def _differences(a: object, b: object, name: str) -> Iterator[tuple[str, object, object]]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted(a.keys() | b.keys()):
            yield from _differences(a.get(key), b.get(key), f"{name}.{key}" if name else key)
    elif a != b:
        yield name, a, b


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _damaged(path: Path) -> ConfigurationError:
    return ConfigurationError(f"{path} is damaged; choose a new folder")
