"""What a guard on a tiny model counts of its own requests."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch

from guardrail.audit import AuditLog
from guardrail.errors import DetectorError, LimitExceededError
from guardrail.guard import Guard
from guardrail.model.decoder import decoder_layers
from guardrail.monitor import compare
from guardrail.monitor.logs import LogReader
from guardrail.policy import Limits, Policy, Thresholds
from guardrail.types import Action, Modality

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from guardrail.artefact import Artefact

SECRET = "zebra-crossing quokka 4711"
FAR = 1e9
LEVELS = {Action.PASS: (FAR, FAR), Action.STEER: (-FAR, FAR), Action.FLAG: (-FAR, -FAR)}


def _policy(action: Action, **rules: Any) -> Policy:
    steer, flag = LEVELS[action]
    both = dict.fromkeys(Modality, Thresholds(steer=steer, flag=flag))
    del both[Modality.VIDEO]
    return Policy(thresholds=both, **rules)


@pytest.fixture
def guard_on(llava: Any, artefact: Artefact) -> Iterator[Callable[..., Guard]]:
    guards: list[Guard] = []

    def make(action: Action = Action.PASS, *, audit: Any = None, **rules: Any) -> Guard:
        model = (llava.model, llava.processor)
        guards.append(Guard(model, artefact, policy=_policy(action, **rules), audit=audit))
        return guards[-1]

    yield make
    for guard in guards:
        guard.close()


def test_every_way_of_asking_counts_a_request_once(guard_on, picture):
    guard = guard_on(Action.STEER)
    image = [{"role": "user", "content": [{"type": "image", "image": picture()}]}]
    guard.generate("tell me", max_new_tokens=3)
    guard.check(image)
    list(guard.stream("tell me", max_new_tokens=3))
    assert len(guard.batch(["tell me", image, "what is this"], max_new_tokens=3)) == 3
    assert len(guard.check_batch(["tell me", image])) == 2

    async def ask() -> None:
        await guard.agenerate("tell me", max_new_tokens=2)
        await guard.acheck("tell me")
        async with guard.astream("tell me", max_new_tokens=2) as stream:
            async for _ in stream:
                pass

    asyncio.run(ask())
    found = guard.monitor.snapshot()
    assert {name: counts.n for name, counts in found.modalities.items()} == {"text": 8, "image": 3}
    assert found.modalities[Modality.TEXT].actions[Action.STEER] == 8
    assert found.outages == 0


def test_scores_are_those_of_the_verdicts(guard_on):
    guard = guard_on()
    verdicts = guard.check_batch(["tell me", "what is this", "red dog"])
    text = guard.monitor.snapshot().modalities[Modality.TEXT]
    scores = [verdict.score for verdict in verdicts]
    assert (text.lowest, text.highest) == (min(scores), max(scores))


def test_shadow_counts_what_would_be(guard_on):
    guard = guard_on(Action.FLAG, mode="shadow")
    assert guard.generate("tell me", max_new_tokens=2).verdict.action is Action.PASS
    text = guard.monitor.snapshot().modalities[Modality.TEXT]
    assert text.actions == {Action.PASS: 0, Action.STEER: 0, Action.FLAG: 1}


def test_a_batch_that_is_run_again_counts_each_request_once(guard_on, llava):
    guard = guard_on(limits=Limits(batch=2, batch_wait_s=0.3))

    def fail(_module: Any, args: Any) -> None:
        if args[0].shape[:2] == (2, 1):  # after the prefill, when the verdicts are on record
            raise RuntimeError("no memory for two")

    handle = decoder_layers(llava.model)[3].register_forward_pre_hook(fail)
    results = guard.batch(["tell me", "what is this"], max_new_tokens=6)
    handle.remove()
    assert len(results) == 2
    assert guard.monitor.snapshot().n == 2


def test_a_batch_of_checks_that_is_run_again_counts_each_request_once(guard_on, llava):
    guard = guard_on(limits=Limits(batch=2, batch_wait_s=0.3))

    def fail(_module: Any, args: Any) -> None:
        if args[0].shape[0] == 2:
            raise RuntimeError("no memory for two")

    handle = decoder_layers(llava.model)[1].register_forward_pre_hook(fail)
    verdicts = guard.check_batch(["tell me", "what is this"])
    handle.remove()
    assert len(verdicts) == guard.monitor.snapshot().n == 2


def test_a_detector_that_fails_is_counted_as_an_outage_and_as_no_finding(guard_on, monkeypatch):
    guard = guard_on(Action.FLAG)

    def fail(*_: Any) -> None:
        raise RuntimeError("no detector today")

    monkeypatch.setattr(guard._engine._detector, "decide", fail)
    guard.generate("tell me", max_new_tokens=2)
    guard.check("tell me")
    text = guard.monitor.snapshot().modalities[Modality.TEXT]
    assert (text.n, text.outages, text.actions[Action.FLAG]) == (0, 2, 0)


def test_no_decision_at_all_is_counted_too(guard_on, monkeypatch):
    guard = guard_on()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    for ask in (guard.generate, guard.check):
        with pytest.raises(DetectorError):
            ask("tell me")
    guard.batch(["tell me"] * 3, return_exceptions=True)
    found = guard.monitor.snapshot()
    assert (found.n, found.outages, found.modalities) == (0, 5, {})


def _break(model: Any, when: Callable[[tuple[int, ...]], bool]) -> Any:
    """A pass over hidden states of such a shape fails below the readout layers."""

    def fail(_module: Any, args: Any) -> None:
        if when(args[0].shape):
            raise RuntimeError("out of memory")

    return decoder_layers(model)[0].register_forward_pre_hook(fail)


def test_a_model_that_fails_before_the_verdict_is_counted_and_audited(guard_on, llava):
    lines: list[Any] = []
    guard = guard_on(audit=lambda verdict, facts: lines.append((verdict, facts["event"])))
    handle = _break(llava.model, lambda _shape: True)
    for ask in (guard.check, guard.generate, lambda text: list(guard.stream(text))):
        with pytest.raises(RuntimeError, match="memory"):
            ask("tell me")
    handle.remove()
    assert guard.monitor.snapshot().outages == 3
    assert lines == [(None, "outage")] * 3


def test_a_model_that_fails_behind_the_verdict_is_no_outage_too(guard_on, llava):
    guard = guard_on()
    handle = _break(llava.model, lambda shape: shape[1] == 1)
    with pytest.raises(RuntimeError, match="memory"):
        guard.generate("tell me", max_new_tokens=4)
    handle.remove()
    found = guard.monitor.snapshot()
    assert (found.n, found.outages) == (1, 0)


def test_what_never_reaches_the_model_is_not_counted(guard_on):
    guard = guard_on(limits=Limits(text_chars=5))
    with pytest.raises(LimitExceededError):
        guard.check("tell me more")
    found = guard.monitor.snapshot()
    assert (found.n, found.outages) == (0, 0)


def test_a_monitor_that_fails_changes_no_answer(guard_on, monkeypatch, caplog):
    lines: list[Any] = []
    guard = guard_on(audit=lambda _, facts: lines.append(facts["event"]))
    expected = guard.generate("tell me", max_new_tokens=3)

    def fail(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(guard.monitor, "record", fail)
    assert guard.generate("tell me", max_new_tokens=3).text == expected.text
    assert "the monitor failed" in caplog.text
    assert lines == ["verdict", "answer"] * 2


def test_a_guard_under_another_policy_counts_for_itself(guard_on):
    guard = guard_on()
    with guard.with_policy(_policy(Action.FLAG)) as other:
        other.check("tell me")
        assert other.monitor.snapshot().n == 1
    assert guard.monitor.snapshot().n == 0


def test_a_snapshot_holds_nothing_that_was_said(guard_on, tmp_path):
    guard = guard_on(Action.FLAG)
    guard.check(SECRET)
    guard.generate(SECRET, max_new_tokens=3)
    path = guard.monitor.snapshot().save(tmp_path / "counts.json")
    written = path.read_text().lower()
    assert json.loads(written)["modalities"]["text"]["n"] == 2
    for word in (*SECRET.split(), "sorry"):
        assert word not in written


def test_the_audit_log_of_the_same_traffic_gives_the_same_comparison(
    guard_on, artefact, tmp_path, picture
):
    words = "red blue green dog cat image system tool user".split()
    with AuditLog(tmp_path / "audit.jsonl") as log:
        guard = guard_on(audit=log)
        guard.check_batch([f"{a} {b}" for a in words for b in words[:-1]])
        guard.batch([f"{a} {words[-1]}" for a in words], max_new_tokens=2)  # counted once, too
        guard.check([{"role": "user", "content": [{"type": "image", "image": picture()}]}])
    reader = LogReader(artefact)
    reader.read(tmp_path / "audit.jsonl")
    kept, read = guard.monitor.snapshot(), reader.snapshot()
    both = [
        compare(counts, artefact, least=50).model_dump(exclude={"since", "until"})
        for counts in (kept, read)
    ]
    assert both[0] == both[1]
    assert both[0]["modalities"][1]["n"] == 81
