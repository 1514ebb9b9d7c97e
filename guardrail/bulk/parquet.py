"""Parquet, one file or many: each row is a row.

Memory holds a few rows and the page of each column that they are in, which is the least that can be
read: for tables of pictures, write row groups of a few hundred rows.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from guardrail.bulk.identity import file_digest
from guardrail.bulk.items import Item, Loaded, plain_key
from guardrail.errors import ConfigurationError, DatasetError, UnsupportedContentError
from guardrail.extras import require

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from guardrail.bulk.columns import Columns
    from guardrail.bulk.items import Wanted

_BATCH = 16  # rows decoded together: each may hold pictures
_BUFFER = 1 << 20  # bytes read ahead of each column


class ParquetSource:
    """The rows of Parquet files, in the order given; relative paths are taken from each's folder.

    A row without an id has its number as key, with several files its file's name and number there.
    """

    kind = "parquet"

    def __init__(
        self, paths: Sequence[Path], folder: Path, columns: Columns, *, prompt: str | None
    ) -> None:
        """Look at every file's footer.

        Raises:
            DatasetError: a file that is no Parquet.
            ConfigurationError: the columns are not there, or differ between files.
            MissingExtraError: pyarrow is not installed.
        """
        require("pyarrow")
        self._paths, self._folder, self._prompt = list(paths), folder, prompt
        self._digest = self.now()
        self._counts: list[int] = []
        found: Columns | None = None
        for path in self._paths:
            with _opened(path) as file:
                names, types = file.schema_arrow.names, file.schema_arrow.types
                here = columns.found_in(names, media_by_type(names, types))
                self._counts.append(file.metadata.num_rows)
            if found is not None and here != found:
                raise ConfigurationError(
                    f"{path} has other columns than {self._paths[0]}: name those to read, or "
                    "leave out with --ignore-column what is not in all"
                )
            found = here
        self.columns = found or columns
        self.rows = sum(self._counts)

    def digest(self) -> str:
        """Over names, sizes and times of change when the files were opened."""
        return self._digest

    def now(self) -> str:
        """The same of this moment."""
        return file_digest(self._paths, self._folder)

    def items(self, wanted: Wanted) -> Iterator[Item]:
        """The wanted rows, in order; row groups without any are not read."""
        start = 0
        for path, count in zip(self._paths, self._counts, strict=True):
            if wanted.any(start, start + count):
                yield from self._of_file(path, start, wanted)
            start += count

    def _of_file(self, path: Path, start: int, wanted: Wanted) -> Iterator[Item]:
        first = start
        with _opened(path) as file:
            for group in range(file.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                if wanted.any(start, stop):
                    for batch in file.iter_batches(
                        _BATCH, row_groups=[group], columns=self.columns.names()
                    ):
                        for place in range(batch.num_rows):
                            if wanted.row(start + place):
                                key = self._key(path, start + place, first)
                                load = partial(self._load, batch, place, path.parent, key)
                                yield Item(start + place, load)
                        start += batch.num_rows
                start = stop

    def _key(self, path: Path, number: int, first: int) -> str:
        if len(self._paths) == 1:
            return str(number)
        return f"{path.relative_to(self._folder).as_posix()}:{number - first}"

    def _load(self, batch: Any, place: int, folder: Path, key: str) -> Loaded:
        return load_row(batch, place, self.columns, folder, prompt=self._prompt, otherwise=key)


def load_row(
    table: Any, place: int, columns: Columns, folder: Path, *, prompt: str | None, otherwise: str
) -> Loaded:
    """One row of an Arrow table or batch; see `Columns.load`."""
    try:
        (row,) = table.slice(place, 1).to_pylist()
    except ValueError as error:  # text that is no UTF-8, a date that Python has none for
        said = f"a value in this row cannot be read ({type(error).__name__})"
        return Loaded(plain_key(None, otherwise), UnsupportedContentError(said))
    return columns.load(row, folder, prompt=prompt, otherwise=otherwise)


def media_by_type(names: Sequence[str], types: Sequence[Any]) -> dict[str, bool]:
    """What Arrow types tell of columns; see `Columns.found_in`."""
    arrow, known = require("pyarrow.types"), require("pyarrow").DataType
    told: dict[str, bool] = {}
    for name, kind in zip(names, types, strict=True):
        if not isinstance(kind, known):  # a column of Python objects in a Ray dataset
            continue
        one = kind
        while arrow.is_list(one) or arrow.is_large_list(one) or arrow.is_fixed_size_list(one):
            one = one.value_type
        if arrow.is_binary(one) or arrow.is_large_binary(one):
            told[name] = True
        elif arrow.is_struct(one) and one.get_field_index("bytes") >= 0:
            told[name] = True
        elif arrow.is_primitive(kind) or arrow.is_decimal(kind) or arrow.is_null(kind):
            told[name] = False  # numbers, truth values, dates, or nothing at all
    return told


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    parquet, arrow = require("pyarrow.parquet"), require("pyarrow")
    try:
        with (
            arrow.OSFile(os.fsencode(path)) as source,  # a name need not be text
            parquet.ParquetFile(source, buffer_size=_BUFFER, pre_buffer=False) as file,
        ):
            yield file
    except (arrow.ArrowException, OSError) as error:  # a damaged page is an OSError to it
        said = " ".join(str(error).split())
        raise DatasetError(f"{path} cannot be read as Parquet: {said}") from error
