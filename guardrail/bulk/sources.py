"""What a path is: a table, or a folder of files, each of them a row."""

from __future__ import annotations

import hashlib
import heapq
import json
import os
import tempfile
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from guardrail.artefact.file import move, temporary_beside
from guardrail.bulk.rows import Item, Loaded, plain_key
from guardrail.bulk.tables import Columns, JsonlSource, ParquetSource
from guardrail.errors import ConfigurationError, DatasetError, InputError, UnsupportedContentError
from guardrail.inputs.rows import PICTURES, VIDEOS, is_note, turn

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

    from guardrail.bulk.rows import Wanted

LISTING = "_listing.jsonl"
_MAX_TEXT = 16_000_000  # bytes; the policy bounds characters
_RUN = 100_000  # names sorted in memory at once


def open_source(
    path: Path,
    out: Path,
    columns: Columns,
    *,
    prompt: str | None = None,
    known: Mapping[str, Any] | None = None,
) -> AnySource:
    """The source at a path; a folder's list of files is put into `out`.

    Raises:
        DatasetError: there is nothing, it is empty, or it could be read in several ways.
        ConfigurationError: columns that are not there, or `out` lies in the folder.
        MissingExtraError: Parquet, and pyarrow is not installed.
    """
    if path.is_dir():
        source = _of_folder(path, out, columns, prompt)
    elif not path.is_file():
        raise DatasetError(f"there is no file or folder {path}")
    elif path.suffix.lower() == ".parquet":
        source = ParquetSource([path], path.parent, columns, prompt=prompt)
    elif path.suffix.lower() in (".jsonl", ".ndjson"):
        source = JsonlSource(path, columns, prompt=prompt, known=known)
    else:
        raise DatasetError(f"{path}: a source is a folder, or a file .parquet, .jsonl or .ndjson")
    if not source.rows:
        if isinstance(source, FilesSource):
            source.listing.discard()
        raise DatasetError(f"there is no row in {path}")
    return source


def _of_folder(folder: Path, out: Path, columns: Columns, prompt: str | None) -> AnySource:
    if out.resolve().is_relative_to(folder.resolve()):
        raise ConfigurationError(
            f"{out} lies in the folder that is scored, and would be scored, too; choose another"
        )
    listing = list_folder(folder, out)
    try:
        return _of_listing(listing, columns, prompt)
    except BaseException:
        listing.discard()
        raise


def _of_listing(listing: Listing, columns: Columns, prompt: str | None) -> AnySource:
    kinds = {kind for kind, count in listing.kinds.items() if count}
    tables = sorted(kinds & {"parquet", "jsonl"})
    if (tables and kinds & {"image", "video", "text"}) or len(tables) > 1:
        raise DatasetError(
            f"{listing.folder} holds {' and '.join(sorted(kinds - {'other'}))}; name the files to "
            "read, or a folder that only has one of them"
        )
    if tables == ["jsonl"]:
        raise DatasetError(f"{listing.folder} holds JSONL files; name one of them")
    if tables == ["parquet"]:
        names = [listed.path for listed in listing if listed.path.lower().endswith(".parquet")]
        listing.discard()
        paths = [listing.folder / name for name in names]
        return ParquetSource(paths, listing.folder, columns, prompt=prompt)
    if columns != Columns():
        raise ConfigurationError(f"{listing.folder} holds files without columns; name none")
    return FilesSource(listing, prompt=prompt)


class FilesSource:
    """The files of a folder, sorted by path. `prompt` is asked beside pictures and videos."""

    kind = "files"

    def __init__(self, listing: Listing, *, prompt: str | None) -> None:
        self.listing, self._prompt = listing, prompt
        self.rows, self.digest = listing.count, listing.digest

    def now(self) -> str:
        """The digest of a new look at the folder; `digest` is that of the list as it was made."""
        again = list_folder(self.listing.folder, self.listing.place.parent)
        again.discard()
        return again.digest

    def items(self, wanted: Wanted) -> Iterator[Item]:
        """The wanted files, in order."""
        for number, listed in enumerate(self.listing):
            if wanted.row(number):
                yield Item(number, partial(self._load, listed.path))

    def _load(self, name: str) -> Loaded:
        key, path = plain_key(name, name), self.listing.folder / name
        try:
            match kind_of(name):
                case "image":
                    return Loaded(key, turn(self._prompt, [path]))
                case "video":
                    return Loaded(key, turn(self._prompt, [], [path]))
                case "text":
                    return Loaded(key, _text(path))
            raise UnsupportedContentError(
                f"a file that ends in {path.suffix[:20]!r} is not read; pictures, videos and .txt "
                "are"
            )
        except InputError as error:
            return Loaded(key, error)


def _text(path: Path) -> str:
    try:
        if not path.is_file():
            raise UnsupportedContentError("no regular file, or a link to nowhere")
        with path.open("rb") as file:
            data = file.read(_MAX_TEXT + 1)
    except OSError as error:
        raise UnsupportedContentError(f"the file cannot be read: {error.strerror}") from error
    if len(data) > _MAX_TEXT:
        raise UnsupportedContentError(f"the file is larger than {_MAX_TEXT} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnsupportedContentError(f"the file is no UTF-8 text ({error.reason})") from error


def kind_of(path: str) -> str:
    """What a file is by its ending: image, video, text, parquet, jsonl or other."""
    ending = os.path.splitext(path)[1].lower()
    if ending in PICTURES:
        return "image"
    if ending in VIDEOS:
        return "video"
    return {".txt": "text", ".parquet": "parquet", ".jsonl": "jsonl"}.get(ending, "other")


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
            move(self.temporary, self.place)

    def discard(self) -> None:
        """Remove what was not kept."""
        with suppress(FileNotFoundError):
            self.temporary.unlink()

    def __iter__(self) -> Iterator[Listed]:
        """The files, sorted by path."""
        with (self.temporary if self.temporary.exists() else self.place).open() as lines:
            for line in lines:
                yield Listed(*json.loads(line))


def list_folder(folder: Path, out: Path, *, run: int = _RUN) -> Listing:
    """List a folder's files into `out`, without hidden ones and notes about the data.

    Raises:
        DatasetError: a link to a folder, which is not followed.
        OSError: a folder that may not be read.
    """
    temporary = temporary_beside(out / LISTING)
    whole, kinds, count = hashlib.sha256(), Counter[str](), 0
    try:
        with ExitStack() as stack, temporary.open("x") as target:
            for line in heapq.merge(*_runs(folder, out, run, kinds, stack)):
                target.write(line)
                whole.update(line.encode())
                count += 1
            target.flush()
            os.fsync(target.fileno())
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    return Listing(
        folder=folder,
        place=out / LISTING,
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


AnySource = FilesSource | JsonlSource | ParquetSource
