"""The load test counts what it says it counts, and its table says what was measured."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"


@pytest.fixture(scope="module")
def modules() -> Iterator[Any]:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import load_bench
        import load_client
        import load_figures

        yield load_bench, load_client, load_figures
    finally:
        sys.path.remove(str(BENCHMARKS))


def run_of(client: Any, wall_s: float, totals: list[float]) -> Any:
    answers = [client.Answer(first_s=total / 2, total_s=total, tokens=4) for total in totals]
    return client.Run(1, wall_s, answers)


def test_rates_are_medians_of_runs_and_latencies_quantiles_of_all_answers(modules: Any) -> None:
    _, client, figures = modules
    runs = [
        run_of(client, 1.0, [1.0] * 10),
        run_of(client, 2.0, [2.0] * 10),
        run_of(client, 4.0, [3.0] * 10),
    ]
    found = figures.summary(runs)
    assert (found["n"], found["requests_per_s"], found["tokens_per_s"]) == (30, 5.0, 20.0)
    assert (found["p50"], found["first_p50"]) == (2.0, 1.0)
    assert found["p95"] == found["p99"] == 3.0


def test_ratios_are_of_runs_of_the_same_turn(modules: Any) -> None:
    _, client, figures = modules
    slow, fast = [2.0, 4.0, 8.0], [1.0, 2.0, 2.0]  # seconds of the first, second and third turn
    runs = {
        "guarded": [run_of(client, wall, [1.0] * 4) for wall in slow],
        "alone": [run_of(client, wall, [1.0] * 4) for wall in fast],
    }
    found = figures.compared(runs)
    assert set(found["sides"]) == {"guarded", "alone"}
    assert found["ratios"]["alone"] == {"ratio": 0.5, "low": 0.375, "high": 0.5}


@pytest.mark.parametrize(
    ("samples", "grown"),
    [([9, 9, 9, 5, 5, 5, 5, 5, 5], 0), ([1, 2, 3, 4, 5, 6, 7, 8, 9], 3), ([0, 5, 7], 2)],
)
def test_memory_grows_from_the_middle_third_to_the_last(
    modules: Any, samples: list[int], grown: int
) -> None:
    assert modules[2].growth(samples) == grown


def test_two_samples_say_nothing_about_growth(modules: Any) -> None:
    with pytest.raises(ValueError, match="three"):
        modules[2].growth([1, 2])


def test_pictures_and_words_take_turns(modules: Any) -> None:
    asked = modules[0].bodies(5)
    kinds = [isinstance(body["messages"][0]["content"], str) for body in asked]
    assert kinds == [True, False] * (len(asked) // 2)
    assert len({json.dumps(body) for body in asked}) == len(asked)
    assert {body["max_tokens"] for body in asked} == {5}


def streaming(lines: list[str], status: int = 200) -> httpx.AsyncClient:
    def answer(request: httpx.Request) -> httpx.Response:
        assert json.loads(request.content)["stream"] is True
        return httpx.Response(status, text="\n\n".join(lines))

    return httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://server")


def event(content: str | None = None, **more: Any) -> str:
    choices = [] if content is None else [{"delta": {"content": content}}]
    return "data: " + json.dumps({"choices": choices, **more})


async def test_a_stream_is_timed_and_its_tokens_are_counted(modules: Any) -> None:
    client = modules[1]
    lines = [event(""), event("a"), event("b"), event(usage={"completion_tokens": 7})]
    async with streaming([*lines, "data: [DONE]"]) as http:
        run = await client.closed_loop(http, [{"model": "x"}], clients=3, each=2)
    assert len(run.answers) == 6
    assert {answer.tokens for answer in run.answers} == {7}
    assert all(0 < answer.first_s <= answer.total_s <= run.wall_s for answer in run.answers)


@pytest.mark.parametrize(("lines", "status"), [([event("a")], 200), (["busy"], 429)])
async def test_an_answer_that_is_none_ends_the_run(
    modules: Any, lines: list[str], status: int
) -> None:
    client = modules[1]
    async with streaming(lines, status) as http:
        with pytest.raises(RuntimeError, match=r"cut off|429: busy"):
            await client.streamed(http, {})


def test_the_table_shows_every_side_and_what_grew(modules: Any) -> None:
    _, client, figures = modules
    counts = {}
    for count, wall in (("1", 8.0), ("32", 2.0)):
        sides = {side: [run_of(client, wall, [1.0] * 8)] * 2 for side in figures.SIDES}
        counts[count] = figures.compared(sides)
    one = counts["1"]["sides"]["guarded"]
    report = {
        "clients": counts,
        "tokens": 4,
        "repeats": 2,
        "fairness": {"heavy": 16, "alone": one, "beside": one, "shared": one},
        "memory": {"requests": 3000, "clients": 8, "rss": 400e6, "growth": -12_000},
    }
    lines = list(figures.table(report))
    rows = [line for line in lines if line.startswith(("| 1 ", "| 32 "))]
    assert len(rows) == 6
    assert rows[0].split(" | ")[1:4] == ["guarded (n=16)", "1.00", "4.0"]
    assert rows[1].endswith("1.000 (1.000-1.000) |")
    said = "\n".join(lines)
    assert "grows 4.00-fold" in said
    assert "beside 16 clients of another key: p50 1.00 s" in said
    assert "over 3,000 requests of 8 clients to a random tiny model: 400 MB, -0.01 MB" in said


@pytest.mark.parametrize("side", ["guarded", "together", "alone"])
def test_every_side_streams_an_answer(modules: Any, side: str) -> None:
    from fastapi.testclient import TestClient
    from load_server import KEYS, app_of

    body = {
        "model": "guarded",
        "messages": [{"role": "user", "content": "tell me about the dog"}],
        "max_tokens": 3,
        "stream": True,
    }
    with TestClient(app_of(side, "tiny", "-")) as client:
        key = {"Authorization": f"Bearer {KEYS['one']}"}
        told = client.post("/v1/chat/completions", json=body, headers=key)
        assert told.status_code == 200, told.text
        lines = [line for line in told.text.splitlines() if line.startswith("data: ")]
        assert lines[-1] == "data: [DONE]"
        chunks = [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]
        assert any(choice.get("finish_reason") for one in chunks for choice in one["choices"])
