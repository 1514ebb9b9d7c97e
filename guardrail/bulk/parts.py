"""What a run writes: parts of its verdicts, and a manifest of what they are of.

Part n holds rows n x size to before (n + 1) x size of the source. It appears whole or not at all,
so what is there needs no second look when a run goes on. The manifest ties the parts to their
source, artefact, policy, columns and model.
"""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from guardrail.artefact.file import write_atomically
from guardrail.bulk.rows import ROW_FIELDS
from guardrail.errors import ConfigurationError, DatasetError
from guardrail.extras import require
from guardrail.inputs.strict_json import strict_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from guardrail.bulk.rows import OutRow

FORMATS = ("parquet", "jsonl")
FORMAT = 1
MANIFEST = "_manifest.json"  # readers of a folder of Parquet pass over names with an underscore


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Where the parts of `rows` rows are, `size` rows each."""

    out: Path
    rows: int
    size: int
    output: str

    def __post_init__(self) -> None:
        """Refuse what cannot be written, before hours of work.

        Raises:
            MissingExtraError: Parquet, and pyarrow is not installed.
        """
        if self.output not in FORMATS or self.size < 1:
            raise ConfigurationError(
                f"parts are {' or '.join(FORMATS)}, of at least one row; got {self.output!r}, "
                f"{self.size}"
            )
        if self.output == "parquet":
            require("pyarrow")

    @property
    def count(self) -> int:
        """How many parts there will be."""
        return -(-self.rows // self.size)

    def path(self, number: int) -> Path:
        """Where a part is, or will be."""
        return self.out / f"part-{number:07d}.{self.output}"

    def is_there(self, number: int) -> bool:
        """Whether a part was written."""
        return self.path(number).exists()

    def span(self, number: int) -> range:
        """The numbers of a part's rows."""
        return range(number * self.size, min((number + 1) * self.size, self.rows))

    def write(self, number: int, rows: Sequence[OutRow]) -> None:
        """Write a part in one step.

        Raises:
            OSError: the disk is full, say; then there is no part, and nothing half-written.
        """
        self._require_rows(number, [row["row"] for row in rows])
        data = _parquet(rows) if self.output == "parquet" else _jsonl(rows)
        try:
            write_atomically(self.path(number), data)
        except FileNotFoundError:
            # Another process on the same shard finished it, and swept up what we were writing.
            if not self.is_there(number):
                raise

    def read(self, number: int, names: Sequence[str]) -> list[OutRow]:
        """Some fields of a part's rows, `row` among them.

        Raises:
            DatasetError: the part is damaged: rows are missing, or there twice.
        """
        path = self.path(number)
        try:
            rows = _read_parquet(path, names) if self.output == "parquet" else _read_jsonl(path)
            found = [row["row"] for row in rows]
        except (ValueError, KeyError, TypeError) as error:  # pyarrow's errors are ValueErrors
            raise self._damaged(path) from error
        except OSError as error:
            if error.errno is not None:
                raise
            raise self._damaged(path) from error  # a page that pyarrow cannot unpack
        self._require_rows(number, found)
        return rows

    def sweep(self) -> None:
        """Remove what killed processes left; only when all parts are there."""
        for left in self.out.glob(".*.tmp"):
            left.unlink(missing_ok=True)

    def _require_rows(self, number: int, found: list[Any]) -> None:
        if found != list(self.span(number)):
            raise self._damaged(self.path(number))

    def _damaged(self, path: Path) -> DatasetError:
        return DatasetError(f"{path} does not hold the rows it should; remove it and start again")


def _table(rows: Sequence[OutRow]) -> Any:
    arrow = require("pyarrow")
    schema = arrow.schema([(n, arrow.type_for_alias(kind)) for n, kind in ROW_FIELDS.items()])
    return arrow.Table.from_pylist(list(rows), schema=schema)


def _parquet(rows: Sequence[OutRow]) -> bytes:
    target = io.BytesIO()
    require("pyarrow.parquet").write_table(_table(rows), target, compression="zstd")
    return target.getvalue()


def _read_parquet(path: Path, names: Sequence[str]) -> list[OutRow]:
    with require("pyarrow.parquet").ParquetFile(path) as file:
        rows: list[OutRow] = file.read(columns=list(names)).to_pylist()
    return rows


def _jsonl(rows: Sequence[OutRow]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def _read_jsonl(path: Path) -> list[OutRow]:
    with path.open(encoding="utf-8") as lines:
        return [strict_json(line) for line in lines]


def read_manifest(out: Path) -> dict[str, Any] | None:
    """What an earlier run wrote; None where there was none.

    Raises:
        ConfigurationError: the folder holds something else, or the manifest is damaged.
    """
    path = out / MANIFEST
    if not path.exists():
        others = sorted(name for name in os.listdir(out) if not name.startswith("."))
        if others and MANIFEST not in others:  # it may have come since
            raise ConfigurationError(
                f"{out} holds {others[0]!r} and no {MANIFEST}, so it is of no run; choose a new "
                "folder"
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
    write_atomically(out / MANIFEST, text.encode(), replace=False)
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
