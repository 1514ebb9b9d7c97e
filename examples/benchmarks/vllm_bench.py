"""vLLM under load: plain, with the guard inside, our server on it, our server on transformers.

.vllm/bin/python examples/benchmarks/vllm_bench.py --out FOLDER

One random Qwen2.5-VL of 112M parameters, whose thresholds no score reaches, so that all sides do
the same work. All servers run at once and are asked in turn, texts and pictures, no two alike: what
differs between them is the guard, not the hour. On a CPU each of them has one thread.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib import metadata
from itertools import count
from pathlib import Path
from typing import Annotated, Any

import httpx
import torch
import typer
from load_client import Body, Run, closed_loop
from load_figures import summary
from PIL import Image
from rich.console import Console
from tables import markdown, put

from guardrail.vllm.options import EVERYBODY

TESTS = Path(__file__).parents[2] / "tests"
sys.path[:0] = [str(Path(__file__).parents[1]), str(TESTS.parent)]
from tiny_guard import data_url

from tests.gpu import vllm_shape

SERVING = TESTS / "vllm" / "serving.py"  # the command `vllm`

console = Console(width=120)
SIDES = {
    "plain": "vLLM, plain",
    "guarded": "vLLM, guard inside",
    "server": "our server, on vLLM",
    "transformers": "our server, on transformers",
}
EACH = {1: 6, 8: 4, 32: 3}  # answers that one client waits for in one run
QUIET = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
QUIET |= {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
ENGINE = "--dtype float32 --max-model-len 1024 --max-num-seqs 32 --block-size 32"
SHAPE, SIDE, WAIT_S = "112m", 112, 600
WORDS = "please tell me about the cat and the dog and what they do in this picture " * 2


def command(side: str, folder: Path, port: int) -> list[str]:
    """How a side is started."""
    model, artefact = str(folder / SHAPE), str(folder / f"{SHAPE}.guard.safetensors")
    ours = [sys.executable, "-m", "guardrail", "serve", model, "-a", artefact]
    ours += ["--port", str(port), "--max-concurrent", "128", "--dtype", "float32"]
    if side == "transformers":
        return ours
    if side == "server":
        return [*ours, "--engine", "vllm", "--", *ENGINE.split()[2:]]
    vllm = [sys.executable, str(SERVING), "serve", model, "--port", str(port)]
    vllm += ["--served-model-name", "guarded", "--no-enable-log-requests", *ENGINE.split()]
    if side == "plain":
        return vllm
    judged = [word for name in sorted(EVERYBODY) for word in ("--judged", name)]
    options = subprocess.run(
        [sys.executable, "-m", "guardrail", "vllm-options", "-a", artefact, *judged],
        capture_output=True,
        text=True,
        check=True,
    )
    return [*vllm, *options.stdout.split()]


@contextmanager
def served(side: str, folder: Path) -> Iterator[str]:
    """The address of a server, while the block runs."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = (folder / f"{side}.log").open("w")
    process = subprocess.Popen(
        command(side, folder, port), stdout=log, stderr=log, env=os.environ | QUIET
    )
    url, until = f"http://127.0.0.1:{port}", time.monotonic() + WAIT_S
    try:
        while True:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{side} did not start; see {log.name}")
            try:
                if httpx.get(f"{url}/v1/models").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(1)
        yield url
    finally:
        process.terminate()
        process.wait(60)


def bodies(numbers: Iterator[int], many: int, tokens: int) -> list[Body]:
    """Chats of a like length, no two alike, every second one with a picture."""
    found: list[Body] = []
    for number in (next(numbers) for _ in range(many)):
        content: Any = f"{number} {WORDS}"
        if number % 2:
            noise = torch.randint(0, 256, (SIDE, SIDE, 3), dtype=torch.uint8).numpy()
            url = {"type": "image_url", "image_url": {"url": data_url(Image.fromarray(noise))}}
            content = [url, {"type": "text", "text": content}]
        messages = [{"role": "user", "content": content}]
        more = {"max_tokens": tokens, "temperature": 0}
        found.append({"model": "guarded", "messages": messages, **more})
    return found


async def rounds(
    urls: dict[str, str], clients: Sequence[int], *, repeats: int, tokens: int
) -> dict[int, dict[str, list[Run]]]:
    """Every number of clients at every side, `repeats` times, the sides' order changing."""
    found: dict[int, dict[str, list[Run]]] = {n: {side: [] for side in urls} for n in clients}
    numbers, room = count(), httpx.Limits(max_connections=None, max_keepalive_connections=None)
    for turn in range(-1, repeats):  # the first one warms up
        order = [*urls][turn % len(urls) :] + [*urls][: turn % len(urls)]
        for many in clients:
            for side in order:
                each = 1 if turn < 0 else EACH.get(many, 2)
                asked = bodies(numbers, many * each, tokens)
                async with httpx.AsyncClient(base_url=urls[side], limits=room, timeout=600) as http:
                    run = await closed_loop(http, asked, clients=many, each=each)
                if turn >= 0:
                    found[many][side].append(run)
                    console.print(f"{many:3} clients, {side}: {run.requests_per_s:.2f} answers/s")
    return found


def ratios(runs: dict[str, list[Run]], side: str, other: str) -> dict[str, float]:
    """Throughput and first token of one side by another's, medians of paired runs."""
    if side not in runs or other not in runs:
        return {}

    def first(run: Run) -> float:
        return statistics.median(answer.first_s for answer in run.answers)

    pairs = list(zip(runs[side], runs[other], strict=True))
    return {
        "throughput": statistics.median(a.requests_per_s / b.requests_per_s for a, b in pairs),
        "first": statistics.median(first(a) / first(b) for a, b in pairs),
    }


def table(report: dict[str, Any]) -> Iterator[str]:
    """The lines of the table."""
    head = ["clients", "served", "requests/s", "latency p50 / p95 / p99, s", "first token p50, s"]
    head += ["throughput by plain vLLM's", "first token by plain vLLM's"]
    rows = []
    for many, found in report["clients"].items():
        for side, s in found["sides"].items():
            by = found["by_plain"].get(side) or {}
            rows.append(
                [
                    str(many),
                    f"{SIDES[side]} (n={s['n']})",
                    f"{s['requests_per_s']:.2f}",
                    f"{s['p50']:.2f} / {s['p95']:.2f} / {s['p99']:.2f}",
                    f"{s['first_p50']:.3f}",
                    f"{by['throughput']:.3f}" if by else "-",
                    f"{by['first']:.3f}" if by else "-",
                ]
            )
    yield from markdown(head, rows)
    yield ""
    yield (
        f"Streamed answers of {report['tokens']} tokens, every second one about a picture; "
        f"{report['repeats']} runs of each row in changing order; {report['vllm']}."
    )


def main(
    out: Annotated[Path, typer.Option(help="where the model and the figures go")],
    clients: Annotated[str, typer.Option(help="numbers of clients")] = "1,8,32",
    sides: Annotated[str, typer.Option(help="which servers")] = ",".join(SIDES),
    repeats: Annotated[int, typer.Option(help="runs of each row")] = 5,
    tokens: Annotated[int, typer.Option(help="of an answer")] = 16,
    readme: Annotated[Path | None, typer.Option(help="whose table is replaced")] = None,
) -> None:
    """Measure, and write what was measured."""
    folder = out / "vllm_bench"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / f"{SHAPE}.guard.safetensors").exists():
        vllm_shape.write(folder, SHAPE, dtype=torch.float32, picture=SIDE)
    counts = [int(one) for one in clients.split(",")]
    with ExitStack() as stack:
        urls = {side: stack.enter_context(served(side, folder)) for side in sides.split(",")}
        found = asyncio.run(rounds(urls, counts, repeats=repeats, tokens=tokens))
    version = next(
        f"{name} {metadata.version(name)}"
        for name in ("vllm", "vllm-cpu")
        if name in {one.name for one in metadata.distributions()}
    )
    report = {
        "tokens": tokens,
        "repeats": repeats,
        "vllm": version,
        "clients": {
            many: {
                "sides": {side: summary(held) for side, held in runs.items()},
                "by_plain": {s: ratios(runs, s, "plain") for s in runs if s != "plain"},
            }
            for many, runs in found.items()
        },
    }
    (out / "vllm_bench.json").write_text(json.dumps(report, indent=1), "utf-8")
    lines = list(table(report))
    console.print(*lines, sep="\n")
    if readme is not None:
        put(readme, "vllm", lines)


if __name__ == "__main__":
    typer.run(main)
