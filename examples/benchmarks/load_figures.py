"""The arithmetic of the load test, and its table."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from load_client import Run
from pairing import spread
from tables import markdown

Figures = Mapping[str, Any]
SIDES = {"guarded": "guarded", "together": "plain, batched", "alone": "plain, one at a time"}


def summary(runs: Sequence[Run]) -> dict[str, Any]:
    """Repeated runs of one side: medians of the rates, quantiles of all latencies in s."""
    answers = [answer for run in runs for answer in run.answers]
    total = np.quantile([answer.total_s for answer in answers], [0.5, 0.95, 0.99])
    first = np.quantile([answer.first_s for answer in answers], [0.5, 0.95])
    return {
        "n": len(answers),
        "requests_per_s": statistics.median(run.requests_per_s for run in runs),
        "tokens_per_s": statistics.median(run.tokens_per_s for run in runs),
        **dict(zip(("p50", "p95", "p99"), total.tolist(), strict=True)),
        **dict(zip(("first_p50", "first_p95"), first.tolist(), strict=True)),
    }


def compared(runs: Mapping[str, Sequence[Run]]) -> dict[str, Any]:
    """One number of clients: each side, and guarded / plain throughput of paired runs."""
    ratios = {
        side: spread(
            [
                a.requests_per_s / b.requests_per_s
                for a, b in zip(runs["guarded"], other, strict=True)
            ]
        )
        for side, other in runs.items()
        if side != "guarded"
    }
    return {"sides": {side: summary(found) for side, found in runs.items()}, "ratios": ratios}


def growth(samples: Sequence[int]) -> float:
    """Bytes between the medians of the last and the middle third; the first third is warm-up.

    The two are a third of the run apart: a leak shows with a third of the requests.
    """
    third = len(samples) // 3
    if third < 1:
        raise ValueError(f"three samples are needed; got {len(samples)}")
    middle, last = samples[-2 * third : -third], samples[-third:]
    return statistics.median(last) - statistics.median(middle)


def table(report: Figures) -> Iterator[str]:
    """The lines of the table."""
    head = [
        *("clients", "served", "requests/s", "tokens/s", "latency p50 / p95 / p99, s"),
        *("first words p50 / p95, s", "guarded / this, throughput (quartiles)"),
    ]
    yield from markdown(head, _rows(report["clients"]))
    yield ""
    yield _work(report)
    fair = report.get("fairness")
    if fair is not None:
        yield ""
        yield (
            f"One more client, asking alone: p50 {fair['alone']['p50']:.2f} s, p95 "
            f"{fair['alone']['p95']:.2f} s; beside {fair['heavy']} clients of another key: p50 "
            f"{fair['beside']['p50']:.2f} s, p95 {fair['beside']['p95']:.2f} s; beside as many "
            f"that share its key: p50 {fair['shared']['p50']:.2f} s, p95 "
            f"{fair['shared']['p95']:.2f} s."
        )
    memory = report.get("memory")
    if memory is not None:
        yield ""
        yield (
            f"Memory of the guarded server over {memory['requests']:,} requests of "
            f"{memory['clients']} clients to a random tiny model: {memory['rss'] / 1e6:.0f} MB, "
            f"{memory['growth'] / 1e6:+.2f} MB from the middle third of them to the last."
        )


def _rows(clients: Mapping[str, Figures]) -> Iterator[list[str]]:
    for number, found in clients.items():
        for side, name in SIDES.items():
            if (s := found["sides"].get(side)) is None:
                continue
            ratio = found["ratios"].get(side)
            yield [
                number,
                f"{name} (n={s['n']})",
                f"{s['requests_per_s']:.2f}",
                f"{s['tokens_per_s']:.1f}",
                f"{s['p50']:.2f} / {s['p95']:.2f} / {s['p99']:.2f}",
                f"{s['first_p50']:.2f} / {s['first_p95']:.2f}",
                "-"
                if ratio is None
                else f"{ratio['ratio']:.3f} ({ratio['low']:.3f}-{ratio['high']:.3f})",
            ]


def _work(report: Figures) -> str:
    said = (
        f"Streamed answers of {report['tokens']} tokens, every second one about a picture; one "
        f"thread for each server, {report['repeats']} runs of each row in changing order."
    )
    counts = list(report["clients"])
    if len(counts) < 2:
        return said
    few, many = (
        report["clients"][count]["sides"]["guarded"]["requests_per_s"]
        for count in (counts[0], counts[-1])
    )
    return (
        f"{said} From {counts[0]} to {counts[-1]} clients the guarded server's throughput grows "
        f"{many / few:.2f}-fold."
    )
