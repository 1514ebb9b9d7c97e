"""Runs that are killed, in a process of their own: each run is a fork that gets SIGKILL.

The model is built once, before the first fork; no thread runs then. Prints what it saw as JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import pyarrow.parquet  # noqa: F401  # before the forks, which would each import it
import torch

from guardrail.bulk import score
from guardrail.guard import Guard
from guardrail.testing import tiny_artefact, tiny_model

ROWS, PART, KILLS = 180, 5, 6


PAIR = tiny_model("llama")
FITTED = tiny_artefact(*PAIR)


def run(source: Path, out: Path) -> None:
    with Guard(PAIR, FITTED) as guard:
        score(guard, source, out, part_rows=PART)


def forked(source: Path, out: Path) -> int:
    child = os.fork()
    if child == 0:
        try:
            run(source, out)
            os._exit(0)
        except BaseException:
            os._exit(1)
    return child


def done(out: Path) -> int:
    return len(list(out.glob("part-*")))


def ended(child: int) -> bool:
    return os.waitpid(child, os.WNOHANG)[0] != 0


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    source, out = folder / "rows.jsonl", folder / "killed"
    source.write_text("".join(json.dumps({"text": f"Row {i}"}) + "\n" for i in range(ROWS)))
    chance, seen = random.Random(int(sys.argv[2])), []
    for kill in range(KILLS):
        before, child = done(out), forked(source, out)
        wanted = before + (chance.randint(1, 5) if kill else 0)  # the first, before any part
        while done(out) < wanted and not ended(child):
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.04))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        seen.append(done(out))
    last = os.waitstatus_to_exitcode(os.waitpid(forked(source, out), 0)[1])
    whole = os.waitstatus_to_exitcode(os.waitpid(forked(source, folder / "whole"), 0)[1])
    sys.stdout.write(json.dumps({"parts": seen, "last": last, "whole": whole}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
