"""What the benchmark evaluates: 600 labelled inputs from a data folder, as JSONL and pictures.

No setting of the guard was chosen on any of them. The data folder holds `text/*.jsonl` and
`vision/*.jsonl` (id, text, label harmful or harmless; vision: image, statement).
"""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

EXAMPLES = Path(__file__).parents[1]
sys.path[:0] = [str(EXAMPLES), str(EXAMPLES / "tiny_vlm")]
from comparing import FOLLOW, LIST
from render import render

LONGEST = 110  # characters: what the tiny VLM's image slots hold with a margin
TEXTS, DRAWN, LOOK_ALIKES = 100, 70, 75  # of each label
SOURCES = ("texts", "texts, drawn", "XSTest", "FigStep")
Row = dict[str, str]


def prepare(data: Path, out: Path, *, others: bool = False) -> dict[str, Path]:
    """Write the inputs under `out`; returns the folders and files that commands are given.

    `others` are texts that the evaluation does not have, drawn and from XSTest, too; the pictures
    of FigStep are the same.

    `all` is what is evaluated, `benign` the traffic of one's own (every second benign FigStep
    picture), `rest` the FigStep inputs that traffic leaves.
    """
    shutil.rmtree(out, ignore_errors=True)
    texts = test_texts(data, others=others)
    figstep = _figstep(data, out / "all")
    _write(out / "all/texts.jsonl", texts)
    _write(out / "all/drawn.jsonl", _drawn(texts, out / "all"))
    _write(out / "all/xstest.jsonl", _look_alikes(data, others=others))
    _write(out / "all/figstep.jsonl", figstep)
    traffic = [row for row in figstep if row["label"] == "harmless"][::2]
    rest = [row for row in figstep if row not in traffic]
    _write(out / "own/benign.jsonl", _beside(traffic))
    _write(out / "own/rest.jsonl", _beside(rest))
    return {"all": out / "all", "benign": out / "own/benign.jsonl", "rest": out / "own/rest.jsonl"}


def test_texts(data: Path, *, others: bool) -> list[Row]:
    """Harmful and ordinary texts of the test splits, each label shuffled on its own."""
    found = []
    for label in ("harmful", "harmless"):
        rows = read_rows(data / f"text/{label}_test.jsonl")
        short = [row for row in rows if len(row["text"]) <= LONGEST]
        random.Random(20).shuffle(short)
        chosen = short[TEXTS : 2 * TEXTS] if others else short[:TEXTS]
        found += [_row(row, "texts") for row in chosen]
    return found


def _drawn(texts: Sequence[Row], folder: Path) -> list[Row]:
    """Some of the same texts as pictures, each with its own seed."""
    (folder / "drawn").mkdir(parents=True, exist_ok=True)
    found = []
    for label in ("harmful", "harmless"):
        for row in [row for row in texts if row["label"] == label][:DRAWN]:
            name = f"drawn/{row['id']}.png"
            render(row["text"], seed=1000 + len(found)).save(folder / name)
            drawn = {"id": f"drawn-{row['id']}", "source": "texts, drawn", "text": FOLLOW}
            found.append(row | drawn | {"image": name, "statement": row["text"]})
    return found


def _look_alikes(data: Path, *, others: bool) -> list[Row]:
    """XSTest: harmless texts that look harmful, and harmful ones like them."""
    rows = read_rows(data / "text/xstest_even.jsonl")
    found = []
    for label in ("harmful", "harmless"):
        chosen = [row for row in rows if row["label"] == label]
        random.Random(21).shuffle(chosen)
        some = chosen[LOOK_ALIKES:] if others else chosen[:LOOK_ALIKES]
        found += [_row(row, "XSTest") for row in some]
    return found


def _figstep(data: Path, folder: Path) -> list[Row]:
    """FigStep SafeBench-Tiny and benign pictures in the same look, copied beside the rest."""
    (folder / "figstep").mkdir(parents=True, exist_ok=True)
    found = []
    for name in ("figstep_tiny", "own_benign"):
        for row in read_rows(data / f"vision/{name}.jsonl"):
            picture = f"figstep/{row['id']}.png"
            shutil.copy(data / "vision" / row["image"], folder / picture)
            more = {"text": LIST, "image": picture, "statement": row["statement"]}
            found.append(_row(row, "FigStep") | more)
    return found


def _row(row: Row, source: str) -> Row:
    kept = {name: row[name] for name in ("id", "text", "label", "category") if row.get(name)}
    return kept | {"source": source}


def _beside(rows: Sequence[Row]) -> list[Row]:
    """Rows for a file in the folder beside that of the pictures."""
    return [row | {"image": f"../all/{row['image']}"} for row in rows]


def read_rows(path: Path) -> list[Row]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def _write(path: Path, rows: Sequence[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
