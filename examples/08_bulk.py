"""A folder of pictures and texts scored into Parquet: stopped on the way, and gone on with.

make examples, or: python examples/08_bulk.py
(`guardrail score MODEL -a ARTEFACT pictures/ --out verdicts/` does the same.)
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pyarrow.parquet as pq
from tiny_guard import FOLLOW, HARMFUL, HARMLESS, drawn, tiny_guard

from guardrail.bulk import score


def main() -> None:
    """Score eight files in parts of two, with Ctrl-C after the fifth, and again to the end."""
    with tiny_guard() as guard, tempfile.TemporaryDirectory() as name:
        source, out = Path(name) / "inbox", Path(name) / "verdicts"
        source.mkdir()
        for number in range(3):
            drawn(HARMFUL).save(source / f"harmful-{number}.png")
            drawn(HARMLESS).save(source / f"harmless-{number}.png")
        (source / "note.txt").write_text(HARMLESS)
        (source / "torn.png").write_bytes(b"half a download")

        def stop_after_five(_stage: str, done: int, _total: int) -> None:
            if done == 5:
                raise KeyboardInterrupt

        try:
            score(guard, source, out, prompt=FOLLOW, part_rows=2, progress=stop_after_five)
        except KeyboardInterrupt:
            print(f"stopped; kept: {len(list(out.glob('part-*')))} parts of 2 rows")
        summary = score(guard, source, out, prompt=FOLLOW, part_rows=2)
        for row in pq.read_table(out).to_pylist():
            shown = f"score {row['score']:.2f}" if row["error"] is None else row["error_type"]
            print(f"{row['row']} {row['key']:<15} {row['action'] or row['reason']:<10} {shown}")
        print(f"{summary.rows} rows, {summary.flagged} flagged, {summary.unreadable} unreadable")


if __name__ == "__main__":
    main()
