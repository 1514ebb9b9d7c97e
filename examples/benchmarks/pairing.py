"""Two ways of doing the same work, timed in turn: what differs is the way, not the hour."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Job = Callable[[], object]


@dataclass(frozen=True)
class Cost:
    """What one run took: seconds by the clock, and of the processor (all threads)."""

    wall: float
    processor: float


def cost(job: Job, device: str) -> Cost:
    """Run a job to its end, the accelerator's included."""
    _wait(device)
    wall, processor = time.perf_counter(), time.process_time()
    job()
    _wait(device)
    return Cost(time.perf_counter() - wall, time.process_time() - processor)


def paired(first: Job, second: Job, *, repeats: int, device: str) -> dict[str, Any]:
    """Both jobs in turn, in changing order: medians, and quartiles of first / second.

    Where other work shares the machine the clock tells little, and the processor's time more.
    """
    first(), second()  # warm up
    one: list[Cost] = []
    other: list[Cost] = []
    for turn in range(repeats):
        jobs = [(first, one), (second, other)]
        for job, costs in jobs if turn % 2 == 0 else reversed(jobs):
            costs.append(cost(job, device))
    return {
        "first_s": statistics.median(c.wall for c in one),
        "second_s": statistics.median(c.wall for c in other),
        "wall": spread([a.wall / b.wall for a, b in zip(one, other, strict=True)]),
        "processor": spread([a.processor / b.processor for a, b in zip(one, other, strict=True)]),
        "repeats": repeats,
    }


def spread(ratios: Sequence[float]) -> dict[str, float]:
    """Median and quartiles."""
    if len(ratios) < 2:
        return {"ratio": ratios[0], "low": ratios[0], "high": ratios[0]}
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"ratio": middle, "low": low, "high": high}


def peak_bytes(job: Job, device: str) -> int | None:
    """The most memory the accelerator held while the job ran; None on the CPU."""
    if not device.startswith("cuda"):
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    job()
    _wait(device)
    return int(torch.cuda.max_memory_allocated(device))


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
