from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families

import guardrail.guard
from guardrail.cluster.replica import Replica, merged, metrics_router
from guardrail.cluster.settings import ClusterSettings, Plan, UserConfig
from guardrail.errors import ArtefactMismatchError, ClusterError, ConfigurationError
from guardrail.guard import Guard
from guardrail.observe.metrics import Metrics
from guardrail.policy import Policy
from guardrail.server.keys import Caller
from guardrail.server.settings import ServerSettings
from guardrail.testing import FakeGuard, tiny_artefact, tiny_model
from tests.waiting import auntil, passes_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

FAR = {"tau_steer": 1e8, "tau_flag": 1e9}
CHAT = {"model": "guarded", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}


@pytest.fixture
def loaded(llava) -> Any:
    with Guard((llava.model, llava.processor), tiny_artefact(llava.model, llava.processor)) as one:
        return one.loaded


@pytest.fixture
def saved(llava, tmp_path) -> Callable[[str], dict[str, str]]:
    """`saved("a")`: the `user_config` of an artefact; `foreign` is one of another model."""

    def save(name: str) -> dict[str, str]:
        pair = tiny_model(seed=5) if name == "foreign" else (llava.model, llava.processor)
        made = tiny_artefact(*pair, seed=ord(name[0]), **FAR)
        path: Path = made.save(tmp_path / f"{name}.safetensors")
        return UserConfig.of(str(path)).model_dump()

    return save


@pytest.fixture
def guards(monkeypatch) -> Iterator[list[Guard]]:
    """All guards that replicas make; every one is closed at the end."""
    made: list[Guard] = []

    class Noted(Guard):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self)

    monkeypatch.setattr(guardrail.guard, "Guard", Noted)
    yield made
    assert all(guard.closed for guard in made)


@pytest.fixture
async def new(loaded, guards, tmp_path) -> AsyncIterator[Callable[..., Replica]]:
    async with contextlib.AsyncExitStack() as ends:

        def make(name: str = "one", *, policy: Policy | None = None) -> Replica:
            settings = ClusterSettings(model="unused", artefact="unused", audit=tmp_path / "audit")
            plan = Plan(settings, policy or Policy(), ServerSettings())
            replica = Replica(plan, partial(guardrail.guard.Guard, loaded), name=name)
            ends.push_async_callback(replica.aclose)
            return replica

        yield make


@contextlib.asynccontextmanager
async def client_of(replica: Replica) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(replica.respond)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        yield client


async def chat(replica: Replica) -> httpx.Response:
    async with client_of(replica) as client:
        return await client.post("/v1/chat/completions", json=CHAT)


async def answered_under(replica: Replica) -> str:
    answer = await chat(replica)
    assert answer.status_code == 200
    return answer.headers["x-guardrail-artefact"]


async def test_another_artefact_takes_over_on_the_same_model_and_the_verdict_names_it(
    new, saved, guards, loaded
):
    a, b, replica = saved("a"), saved("b"), new()
    await replica.reconfigure(a)
    await replica.check_health()
    assert await answered_under(replica) == a["artefact_id"]
    await replica.reconfigure(b)
    await replica.check_health()
    assert await answered_under(replica) == b["artefact_id"]
    assert (await replica.facts())["artefact_id"] == b["artefact_id"]
    assert [guard.loaded for guard in guards[:2]] == [loaded, loaded]
    await auntil(lambda: guards[0].closed)


async def test_a_request_under_way_ends_under_the_artefact_it_began_with(new, saved, llava, guards):
    a, b, replica = saved("a"), saved("b"), new()
    await replica.reconfigure(a)
    with passes_of(llava.model) as passes:
        passes.hold()
        early = asyncio.create_task(chat(replica))
        await auntil(passes.held)
        await replica.reconfigure(b)
        assert not guards[0].closed
        late = asyncio.create_task(chat(replica))
        passes.go_on()
        answers = [await early, await late]
    told = [answer.headers["x-guardrail-artefact"] for answer in answers]
    assert told == [a["artefact_id"], b["artefact_id"]]
    await auntil(lambda: guards[0].closed)


async def test_the_same_artefact_is_not_loaded_again(new, saved, guards):
    a, replica = saved("a"), new()
    await replica.reconfigure(a)
    made = len(guards)
    await replica.reconfigure(dict(a))
    assert len(guards) == made


async def test_before_there_is_an_artefact_nothing_is_answered(new):
    replica = new()
    with pytest.raises(ClusterError, match="no artefact"):
        await replica.check_health()
    with pytest.raises(ClusterError, match="no artefact"):
        await chat(replica)


@pytest.mark.parametrize(
    ("name", "change", "error", "words"),
    [
        ("b", {"artefact_id": "guard-other"}, ConfigurationError, "asked for is guard-other"),
        ("foreign", {}, ArtefactMismatchError, "another model"),
    ],
)
async def test_an_artefact_that_cannot_be_used_is_reported_and_never_answered_under(
    new, saved, guards, caplog, name, change, error, words
):
    a, replica = saved("a"), new()
    await replica.reconfigure(a)
    with pytest.raises(error, match=words):
        await replica.reconfigure(saved(name) | change)
    with pytest.raises(ClusterError, match=words):  # so that it stays out of the rotation
        await replica.check_health()
    assert any(words in getattr(record, "why", "") for record in caplog.records)
    assert await answered_under(replica) == a["artefact_id"]  # what came before that
    await replica.reconfigure(saved("c"))
    await replica.check_health()


async def test_a_replica_that_cannot_use_its_first_artefact_answers_nobody(new, saved):
    replica = new()
    with pytest.raises(ArtefactMismatchError):
        await replica.reconfigure(saved("foreign"))
    with pytest.raises(ClusterError):
        await replica.check_health()
    with pytest.raises(ClusterError):
        await chat(replica)


async def test_a_user_config_without_an_id_is_refused(new, saved):
    replica = new()
    with pytest.raises(ValueError, match="artefact_id"):
        await replica.reconfigure({"artefact": saved("a")["artefact"]})


async def test_a_replica_that_is_asked_whether_it_could_stays_as_it_is(new, saved, guards):
    a, replica = saved("a"), new()
    await replica.reconfigure(a)
    made = len(guards)
    assert await replica.trouble_with(saved("b")) is None
    told = await replica.trouble_with(saved("foreign"))
    assert told is not None
    assert told.startswith("one: ArtefactMismatchError")
    assert all(guard.closed for guard in guards[made:])
    assert await answered_under(replica) == a["artefact_id"]
    await replica.check_health()


async def test_a_closed_guard_is_unhealthy(new, saved):
    replica = new()
    await replica.reconfigure(saved("a"))
    await replica.aclose()
    with pytest.raises(ClusterError, match="closed"):
        await replica.check_health()


async def test_the_policy_of_the_deployment_is_in_force(new, saved):
    replica = new(policy=Policy(mode="shadow"))
    await replica.reconfigure(saved("a"))
    assert (await chat(replica)).headers["x-guardrail-mode"] == "shadow"


async def test_each_replica_writes_its_own_audit_file(new, saved, tmp_path):
    for name in ("one", "two"):
        replica = new(name)
        await replica.reconfigure(saved("a"))
        await chat(replica)
    files = sorted((tmp_path / "audit").iterdir())
    assert [file.name for file in files] == ["one.jsonl", "two.jsonl"]
    await auntil(lambda: all(file.read_text().count('"event": "verdict"') == 1 for file in files))


async def test_ray_may_begin_and_end_the_app_before_there_is_an_artefact(new):
    asked: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    said: list[dict[str, Any]] = []
    for kind in ("startup", "shutdown"):
        asked.put_nowait({"type": f"lifespan.{kind}"})

    async def note(message: dict[str, Any]) -> None:
        said.append(message)

    await new().respond({"type": "lifespan"}, asked.get, note)
    assert [one["type"] for one in said] == [
        "lifespan.startup.complete",
        "lifespan.shutdown.complete",
    ]


async def test_metrics_count_on_over_an_exchange_and_name_the_replica(new, saved):
    replica = new()
    for name in "ab":
        await replica.reconfigure(saved(name))
        await chat(replica)
    async with client_of(replica) as client:
        text = (await client.get("/metrics")).text
    families = {family.name: family for family in text_string_to_metric_families(text)}
    counted = [s for s in families["guardrail_verdicts"].samples if s.name.endswith("_total")]
    assert sum(sample.value for sample in counted) == 2
    assert {sample.labels["replica"] for sample in counted} == {"one"}


def test_figures_of_all_replicas_are_there_by_replica():
    replicas = {}
    for name, count in (("a", 1), ("b", 2)):
        metrics = Metrics()
        for _ in range(count):
            metrics.answered("/v1/checks", 200, 0.1)
        replicas[name] = [*metrics.registry.collect()]

    text = merged(replicas)[0].decode()
    families = {f.name: f for f in text_string_to_metric_families(text)}

    found = families["guardrail_requests"]
    assert found.type == "counter"
    totals = {s.labels["replica"]: s.value for s in found.samples if s.name.endswith("_total")}
    assert totals == {"a": 1.0, "b": 2.0}
    buckets = families["guardrail_http_request_seconds"]
    assert buckets.type == "histogram"
    assert {s.labels["replica"] for s in buckets.samples} == {"a", "b"}


async def test_figures_of_scores_are_for_callers_who_are_told_scores():
    metrics = Metrics()
    metrics(FakeGuard().check("hello"), {"event": "verdict"})

    async def all_metrics():
        return {"a": [*metrics.registry.collect()]}

    app = FastAPI()
    app.include_router(metrics_router(all_metrics))
    told = {}
    for sees in (False, True):

        async def named(scope, receive, send, sees=sees):
            scope["state"] = {"caller": Caller("r", sees_scores=sees)}
            await app(scope, receive, send)

        transport = httpx.ASGITransport(named)
        async with httpx.AsyncClient(transport=transport, base_url="http://s") as client:
            told[sees] = (await client.get("/metrics")).text
    assert "guardrail_verdicts_total{" in told[False]
    assert "guardrail_score" not in told[False]
    assert "guardrail_score_bucket{" in told[True]
