"""A sorted list of all files below a folder, kept in a file: memory holds one run of names.

Names are collected as `os.scandir` gives them, sorted in runs, and the runs are merged.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import secrets
import tempfile
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, NamedTuple

from guardrail.errors import DatasetError
from guardrail.requests.endings import PICTURES, VIDEOS, is_note

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

NAME = "_listing.jsonl"
_RUN = 100_000  # names sorted in memory at once


class Listed(NamedTuple):
    """A file: its path from the folder, bytes, and when it changed last, in ns."""

    path: str
    size: int
    changed_ns: int


@dataclass(kw_only=True)
class Listing:
    """The list, not yet in its place: how many files, of which kinds, and a digest over it."""

    folder: Path
    place: Path
    temporary: Path
    count: int
    digest: str
    kinds: Counter[str]

    def keep(self) -> None:
        """Put the list in its place; several processes may, since all have the same one."""
        if self.temporary.exists():
            os.replace(self.temporary, self.place)

    def discard(self) -> None:
        """Remove what was not kept."""
        with suppress(FileNotFoundError):
            self.temporary.unlink()

    def __iter__(self) -> Iterator[Listed]:
        """The files, sorted by path."""
        with (self.temporary if self.temporary.exists() else self.place).open() as lines:
            for line in lines:
                yield Listed(*json.loads(line))


def kind_of(path: str) -> str:
    """What a file is by its ending: image, video, text, parquet, jsonl or other."""
    ending = os.path.splitext(path)[1].lower()
    if ending in PICTURES:
        return "image"
    if ending in VIDEOS:
        return "video"
    return {".txt": "text", ".parquet": "parquet", ".jsonl": "jsonl"}.get(ending, "other")


def list_folder(folder: Path, out: Path, *, run: int = _RUN) -> Listing:
    """List a folder's files into `out`, without hidden ones and notes about the data.

    Raises:
        DatasetError: a link to a folder, which is not followed.
        OSError: a folder that may not be read.
    """
    temporary = out / f".{NAME}.{secrets.token_hex(6)}.tmp"
    whole, kinds, count = hashlib.sha256(), Counter[str](), 0
    try:
        with ExitStack() as stack, temporary.open("x") as target:
            for line in heapq.merge(*_runs(folder, out, run, kinds, stack)):
                target.write(line)
                whole.update(line.encode())
                count += 1
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    return Listing(
        folder=folder,
        place=out / NAME,
        temporary=temporary,
        count=count,
        digest=whole.hexdigest(),
        kinds=kinds,
    )


def _runs(
    folder: Path, out: Path, size: int, kinds: Counter[str], stack: ExitStack
) -> list[IO[str]]:
    """Temporary files of sorted lines, one for each run of names; the stack closes them."""
    made: list[IO[str]] = []
    lines: list[str] = []
    for listed in _files(folder):
        kinds[kind_of(listed.path)] += 1
        lines.append(json.dumps(listed) + "\n")
        if len(lines) >= size:
            made.append(_sorted_file(lines, out, stack))
            lines = []
    return [*made, _sorted_file(lines, out, stack)]


def _sorted_file(lines: Iterable[str], out: Path, stack: ExitStack) -> IO[str]:
    file = stack.enter_context(tempfile.TemporaryFile("w+", dir=out, encoding="ascii"))
    file.writelines(sorted(lines))
    file.seek(0)
    return file


def _files(folder: Path) -> Iterator[Listed]:
    """Every file below a folder, in no order; a file that cannot be looked at has size -1."""
    folders = [""]
    while folders:
        below = folders.pop()
        with os.scandir(folder / below) as entries:
            for entry in entries:
                path = f"{below}{entry.name}"
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(f"{path}/")
                elif _leads_to_folder(entry):
                    raise DatasetError(
                        f"{folder / path} is a link to a folder, which is not followed; name that "
                        "folder itself, or take the link away"
                    )
                elif not is_note(entry.name):
                    yield _looked_at(entry, path)


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a ring of links leads nowhere
        return False


def _looked_at(entry: os.DirEntry[str], path: str) -> Listed:
    try:
        facts = entry.stat()
    except OSError:  # a link to nowhere: a row with an error, when its turn comes
        return Listed(path, -1, 0)
    return Listed(path, facts.st_size, facts.st_mtime_ns)
