"""A server's memory stays flat under load, and a leak of 4 kB a request would be seen.

Smaller ones, of single objects, are for `tests/server/test_memory.py`.
"""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"
ROUNDS, CLIENTS = 150, 8  # the first third warms caches up
LEAK = 4_096  # bytes a request; caches of the interpreter and of malloc still take some 500
LEAKING = f"""
    import sys
    sys.path.insert(0, {str(BENCHMARKS)!r})
    import torch
    from load_server import app_of, serve

    torch.set_num_threads(1)
    app, kept = app_of(*sys.argv[1:4]), []

    async def leaking(scope, receive, send):
        if scope["type"] == "http":
            kept.append(bytearray({LEAK}))
        await app(scope, receive, send)

    serve(leaking)
"""


@pytest.fixture(scope="module")
def modules() -> Iterator[Any]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import load_bench
        import load_client
        import load_figures
        import load_server

        yield load_bench, load_client, load_figures, load_server
    finally:
        sys.path.remove(str(BENCHMARKS))


async def grown(modules: Any, **options: Any) -> float:
    """Bytes of growth over a third of the requests."""
    bench, client, figures, server = modules
    with server.served("guarded", "tiny", exact_memory=True, **options) as (url, pid):
        async with client.connected(url) as http:
            asked = bench.bodies(2)
            found = await client.resident(http, asked, clients=CLIENTS, rounds=ROUNDS, pid=pid)
    return float(figures.growth(found))


@pytest.mark.slow
async def test_memory_is_flat_over_a_run_and_a_leak_of_4_kb_a_request_is_not(
    modules: Any, tmp_path: Path
) -> None:
    script = tmp_path / "leaking.py"
    script.write_text(textwrap.dedent(LEAKING), "utf-8")
    per_third = ROUNDS // 3 * CLIENTS * 2
    leaked = await grown(modules, script=script) / per_third
    flat = await grown(modules) / per_third
    assert flat < LEAK / 2 < leaked
