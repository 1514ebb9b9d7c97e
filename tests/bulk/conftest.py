from __future__ import annotations

import io
import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from guardrail.guard import Guard
from guardrail.testing import tiny_artefact

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


_WORDS = "the cat sat on a red mat while dog ran home past old blue house".split()


@pytest.fixture(scope="session")
def phrase() -> Callable[[int], str]:
    """Short texts of words that differ, so that their scores do."""
    return lambda i: f"{_WORDS[i % 14]} {_WORDS[(5 * i + 3) % 14]} {_WORDS[(3 * i + 1) % 14]} {i}"


@pytest.fixture(scope="module")
def guard(llava: Any, phrase: Callable[[int], str]) -> Iterator[Guard]:
    """A guard whose thresholds lie between scores of short prompts, so that all actions occur.

    None lies on a score: a row's batch moves its score by a rounding error. Many rows score the
    same, from a window over words that they have in common.
    """
    pair = (llava.model, llava.processor)
    with Guard(pair, tiny_artefact(*pair)) as probe:
        verdicts = probe.check_batch([phrase(i) for i in range(30)])
    scores = sorted({round(verdict.score or 0.0, 3) for verdict in verdicts})
    thirds = len(scores) // 3, 2 * len(scores) // 3
    steer, flag = ((scores[place - 1] + scores[place]) / 2 for place in thirds)
    fitted = tiny_artefact(*pair, tau_steer=steer, tau_flag=flag)
    with Guard(pair, fitted) as made:
        yield made


@pytest.fixture(scope="session")
def png() -> Callable[[int], bytes]:
    """A small picture of one colour, as a file's bytes."""

    def make(shade: int) -> bytes:
        target = io.BytesIO()
        Image.new("RGB", (40, 40), (shade % 256, 90, 200)).save(target, "PNG")
        return target.getvalue()

    return make


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[[list[Any]], Path]:
    """A JSONL file of rows; a str starting with `!` is a line as it is."""

    def write(rows: list[Any]) -> Path:
        path = tmp_path / "rows.jsonl"
        lines = [
            row[1:] if isinstance(row, str) and row.startswith("!") else json.dumps(row)
            for row in rows
        ]
        path.write_text("".join(line + "\n" for line in lines))
        return path

    return write


@pytest.fixture
def parquet(tmp_path: Path) -> Callable[..., Path]:
    """A Parquet file of columns: `parquet({"text": [...]}, name="a.parquet", group=10)`."""

    def write(columns: dict[str, list[Any]], *, name: str = "t.parquet", group: int = 10) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table(columns), path, row_group_size=group)
        return path

    return write


class Everything:
    """Every row is wanted."""

    def row(self, number: int) -> bool:
        return number >= 0

    def any(self, start: int, stop: int) -> bool:
        return start < stop


class Only:
    """Some rows are."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = set(numbers)

    def row(self, number: int) -> bool:
        return number in self.numbers

    def any(self, start: int, stop: int) -> bool:
        return any(start <= number < stop for number in self.numbers)


@pytest.fixture
def everything() -> Everything:
    return Everything()


@pytest.fixture
def only() -> type[Only]:
    return Only


@pytest.fixture(scope="session")
def read_rows() -> Callable[[Path], list[dict[str, Any]]]:
    """All rows of a run's parts, in the order of the parts."""

    def read(out: Path) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for path in sorted(out.glob("part-*")):
            if path.suffix == ".parquet":
                rows += pq.read_table(path).to_pylist()
            else:
                rows += [json.loads(line) for line in path.read_text().splitlines()]
        return rows

    return read
