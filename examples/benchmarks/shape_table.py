"""What `shape_bench.py` measured, as a table."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tables
import torch
from shapes import Shape, parameters

from guardrail.model.load import LoadedModel


def described(shape: Shape, loaded: LoadedModel) -> dict[str, Any]:
    """The machine and the model, as far as they matter for a time."""
    card = torch.cuda.get_device_name(loaded.device) if loaded.device.type == "cuda" else None
    return {
        "shape": shape.about,
        "parameters": parameters(loaded),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "device": card or f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)",
        "load_average": os.getloadavg()[0],
        "torch": torch.__version__,
    }


def table(runs: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """All runs as one table."""

    def ratio(found: Mapping[str, float]) -> str:
        return f"{found['ratio']:.3f} ({found['low']:.3f}-{found['high']:.3f})"

    def memory(row: Mapping[str, Any]) -> str:
        both = row.get("peak_guarded"), row.get("peak_plain")
        return "-" if None in both else " / ".join(f"{b / 2**30:.2f}" for b in both if b)

    def cells(run: Mapping[str, Any], row: Mapping[str, Any]) -> list[str]:
        size = f"{run['shape']} ({run['parameters'] / 1e9:.2f}B), {run['dtype']}"
        asked = f"{row['batch']} x {row['pictures']}"
        if "wall" not in row:
            return [size, run["device"], asked, row["what"], "-", "-", "-", "-", "-"]
        times = f"{row['first_s']:.3f} / {row['second_s']:.3f}"
        both = [ratio(row["wall"]), ratio(row["processor"])]
        return [
            size,
            run["device"],
            asked,
            row["what"],
            times,
            *both,
            str(row["repeats"]),
            memory(row),
        ]

    head = ["model", "on", "batch x pictures", "comparison", "seconds", "ratio, wall clock"]
    head += ["ratio, processor time", "pairs", "peak GiB"]
    return tables.markdown(head, [cells(run, row) for run in runs for row in run["rows"]])
