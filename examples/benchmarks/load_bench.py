"""The server under load: 1, 8 and 32 clients, guarded and the same model served plainly.

python examples/benchmarks/load_bench.py --model FOLDER --out FOLDER

All servers run at once, each in a process of its own, and are asked in turn: what differs between
them is the guard, not the hour. Absolute figures are this machine's.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import psutil
import typer
from load_client import Body, Run, closed_loop, connected, resident, until_ended
from load_figures import SIDES, compared, growth, summary, table
from load_server import served
from rich.console import Console
from tables import put

sys.path.insert(0, str(Path(__file__).parents[1]))
from comparing import FOLLOW
from tiny_guard import data_url, drawn

console = Console(width=120)
EACH = {1: 8, 8: 6, 32: 4}  # answers that one client waits for in one run
FEW = {1: 8, 8: 2, 32: 1}  # the same for the side that takes them one at a time, and so steadily
THINGS = "letter poem recipe list story note speech report".split()
ABOUT = "a garden|a teacher|the weather in spring|an old bicycle|bread|a long journey".split("|")
MEMORY_CLIENTS = 8
WARM = 8  # clients that ask once before anything is measured
HEAVY, LIGHT = 16, 8  # clients that keep the server busy, and answers that another one waits for


def bodies(tokens: int) -> list[Body]:
    """Harmless chats of about a like length, every second one as a picture of its words."""
    asked: list[Body] = []
    for number, about in enumerate(ABOUT * 2):
        text = f"Write a short {THINGS[number % len(THINGS)]} about {about}."
        content: Any = text
        if number % 2:
            url = {"type": "image_url", "image_url": {"url": data_url(drawn(text))}}
            content = [url, {"type": "text", "text": FOLLOW}]
        messages = [{"role": "user", "content": content}]
        asked.append({"model": "guarded", "messages": messages, "max_tokens": tokens})
    return asked


async def rounds(
    model: str, artefact: str, asked: Sequence[Body], *, clients: Sequence[int], repeats: int
) -> dict[int, dict[str, list[Run]]]:
    """Every number of clients at every side, `repeats` times, the sides' order changing.

    The servers are started anew each time: where a process comes to lie makes some percent.
    """
    found: dict[int, dict[str, list[Run]]] = {n: {side: [] for side in SIDES} for n in clients}
    for turn in range(repeats):
        order = [*SIDES][turn % len(SIDES) :] + [*SIDES][: turn % len(SIDES)]
        with ExitStack() as stack:
            urls = {side: stack.enter_context(served(side, model, artefact))[0] for side in order}
            for side in order:  # warm up
                async with connected(urls[side]) as http:
                    await closed_loop(http, asked, clients=WARM, each=1)
            for count in clients:
                for side in order:
                    each = (FEW if side == "alone" else EACH).get(count, 2)
                    async with connected(urls[side]) as http:
                        run = await closed_loop(http, asked, clients=count, each=each)
                    found[count][side].append(run)
                    console.print(f"{count:3} clients, {side}: {run.requests_per_s:.2f} answers/s")
    return found


async def fairness(url: str, asked: Sequence[Body]) -> dict[str, Any]:
    """How long one client waits: alone, beside many under another key, beside many under its own.

    The last is what it would wait if the queue were one line for all.
    """
    found: dict[str, Any] = {"heavy": HEAVY}
    for name, key in (("alone", None), ("beside", "many"), ("shared", "one")):
        async with connected(url, "one") as one, connected(url, key or "many") as many:
            ended = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                if key is not None:
                    group.create_task(until_ended(many, asked, clients=HEAVY, ended=ended))
                    await closed_loop(one, asked, clients=1, each=1)  # the others are under way
                run = await closed_loop(one, asked, clients=1, each=LIGHT)
                ended.set()
        found[name] = summary([run])
    return found


async def memory(model: str, artefact: str, *, requests: int) -> dict[str, Any]:
    """What the guarded server holds while it answers many short requests."""
    each_round = 2 * MEMORY_CLIENTS
    with served("guarded", model, artefact, exact_memory=True) as (url, pid):
        async with connected(url) as http:
            found = await resident(
                http,
                bodies(4),
                clients=MEMORY_CLIENTS,
                rounds=max(3, requests // each_round),
                pid=pid,
            )
    return {
        "requests": len(found) * each_round,
        "clients": MEMORY_CLIENTS,
        "rss": found[-1],
        "growth": growth(found),
    }


async def measured(
    model: str, artefact: str, *, clients: Sequence[int], tokens: int, repeats: int
) -> dict[str, Any]:
    """The comparison of all sides."""
    asked = bodies(tokens)
    runs = await rounds(model, artefact, asked, clients=clients, repeats=repeats)
    with served("guarded", model, artefact) as (url, _):
        fair = await fairness(url, asked)
    per_count = {str(count): compared(sides) for count, sides in runs.items()}
    return {
        "model": Path(model).name,
        "tokens": tokens,
        "repeats": repeats,
        "cores": psutil.cpu_count(),
        "clients": per_count,
        "fairness": fair,
    }


def main(
    model: Annotated[str, typer.Option(help="the assembled tiny VLM, or `tiny`")],
    out: Annotated[Path, typer.Option(help="where the figures go, and the artefact is")],
    clients: Annotated[list[int] | None, typer.Option(help="at once; repeatable")] = None,
    tokens: Annotated[int, typer.Option(help="of each answer")] = 8,
    repeats: Annotated[int, typer.Option(help="runs of each row")] = 3,
    requests: Annotated[int, typer.Option(help="of the run that memory is watched in")] = 3_000,
    readme: Annotated[Path | None, typer.Option(help="whose table `load` is written")] = None,
) -> None:
    """Measure, print and save."""
    artefact = out / "tiny_vlm.guard.safetensors"
    if model != "tiny" and not artefact.exists():
        raise SystemExit(f"{artefact} is missing; run `make demo` first: it fits the guard")
    report = asyncio.run(
        measured(
            model, str(artefact), clients=clients or list(EACH), tokens=tokens, repeats=repeats
        )
    )
    report["memory"] = asyncio.run(memory("tiny", "-", requests=requests))
    out.mkdir(parents=True, exist_ok=True)
    (out / "load_bench.json").write_text(json.dumps(report, indent=1), "utf-8")
    lines = list(table(report))
    sys.stdout.write("\n".join(lines) + "\n")
    if readme is not None:
        put(readme, "load", lines)


if __name__ == "__main__":
    typer.run(main)
