"""What a path is: a folder of files, a folder of Parquet, a Parquet file or a JSONL file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from guardrail.bulk.columns import Columns
from guardrail.bulk.files import FilesSource
from guardrail.bulk.jsonl import JsonlSource
from guardrail.bulk.listing import list_folder
from guardrail.bulk.parquet import ParquetSource
from guardrail.errors import ConfigurationError, DatasetError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from guardrail.bulk.listing import Listing

AnySource = FilesSource | JsonlSource | ParquetSource


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
