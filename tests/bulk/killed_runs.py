"""Runs that end before each of their steps with files, in a process of their own: forks of one.

The model is built and a whole run made before the first fork, so that no fork imports or builds
what all of them need; no thread runs then. Prints what it saw as JSON.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from guardrail.bulk import score
from guardrail.guard import Guard
from guardrail.testing import tiny_artefact, tiny_model

ROWS, PART = 4, 3
ENDED = 9  # of a process that was ended on the way
STEPS = ("open", "os.rename", "os.link", "os.remove")  # as the interpreter names them

PAIR = tiny_model("llama")
FITTED = tiny_artefact(*PAIR)


def end_before(step: int, out: Path) -> None:
    """Let this process go without a word before its n-th step with a file in a folder."""
    left = step

    def note(event: str, values: tuple[Any, ...]) -> None:
        nonlocal left
        if event in STEPS and any(str(value).startswith(str(out)) for value in values):
            left -= 1
            if left == 0:
                os._exit(ENDED)

    sys.addaudithook(note)


def forked(source: Path, out: Path, *, step: int = 0) -> int:
    """The exit status of a run, in a fork."""
    child = os.fork()
    if child == 0:
        try:
            end_before(step, out)
            with Guard(PAIR, FITTED) as guard:
                score(guard, source, out, part_rows=PART)
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    source = folder / "rows"
    source.mkdir()
    for number in range(ROWS):
        (source / f"{number}.txt").write_text(f"Row {number}")
    with Guard(PAIR, FITTED) as guard:
        score(guard, source, folder / "whole", part_rows=PART)
    gc.freeze()  # a collection in a fork would copy every page
    seen: dict[str, Any] = {"ended": []}
    status, step = ENDED, 0
    while status == ENDED:
        step += 1
        out = folder / f"{step:03d}"
        status = forked(source, out, step=step)
        here = sorted(path.name for path in out.glob("*"))
        seen["ended"].append([status, here, forked(source, out)])
    sys.stdout.write(json.dumps(seen))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
