"""Many callers, one model: nobody gets another's answer, verdict or edit."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from guardrail.errors import (
    GuardClosedError,
    GuardrailError,
    QueueFullError,
    RequestCancelledError,
    RequestTimeoutError,
)
from guardrail.policy import Limits
from guardrail.types import Action

PASS, STEER, FLAG = Action.PASS, Action.STEER, Action.FLAG
WAIT = 10.0


def test_guards_that_pass_steer_and_flag_at_once_do_not_mix(tiny, guard_on):
    limits = Limits(batch=3, batch_wait_s=0.01)
    guards = [
        guard_on(tiny, PASS, limits=limits),
        guard_on(tiny, STEER, limits=limits, steer_tokens=2),
        guard_on(tiny, FLAG, limits=limits),
        guard_on(tiny, STEER, limits=limits, mode="shadow"),
    ]
    jobs = [(guard, f"tell me about the cat number {n}") for n in range(3) for guard in guards]

    def answer(job):
        guard, prompt = job
        result = guard.generate(prompt, max_new_tokens=5)
        return result.token_ids, result.text, result.verdict.action, result.verdict.would_be

    expected = [answer(job) for job in jobs]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(answer, jobs)) == expected
    passed, steered = expected[0], expected[1]
    assert passed[0] != steered[0]
    assert expected[3][:2] == passed[:2]  # shadow changes nothing


def test_the_models_own_generate_may_run_beside_a_guard(llava, guard_on):
    guard = guard_on(llava, STEER)
    ids = llava.tokenizer("tell me about the cat", return_tensors="pt")
    expected = llava.model.generate(**ids, max_new_tokens=6)[0].tolist()
    steered = guard.generate("tell me about the dog", max_new_tokens=6).token_ids
    stop = threading.Event()
    wrong: list[object] = []

    def plain():
        while not stop.is_set():
            ids_now = llava.model.generate(**ids, max_new_tokens=6)[0].tolist()
            if ids_now != expected:
                wrong.append(ids_now)

    thread = threading.Thread(target=plain)
    thread.start()
    for _ in range(8):
        assert guard.generate("tell me about the dog", max_new_tokens=6).token_ids == steered
    stop.set()
    thread.join(WAIT)
    assert wrong == []


def test_callers_that_give_up_at_random_never_spoil_the_others(llava, guard_on, slow_layers):
    guard = guard_on(llava, limits=Limits(batch=4, batch_wait_s=0.005))
    prompts = [f"tell me about the cat number {n}" for n in range(4)]
    expected = {prompt: guard.generate(prompt, max_new_tokens=8).text for prompt in prompts}
    slow_layers(llava.model, 0.003)
    dice = random.Random(1)
    plans = [(dice.choice(prompts), dice.choice(["read", "close", "late"])) for _ in range(24)]

    def one(plan):
        prompt, way = plan
        if way == "late":
            try:
                return prompt, guard.generate(prompt, max_new_tokens=8, timeout=0.01).text
            except RequestTimeoutError:
                return None
        with guard.stream(prompt, max_new_tokens=8) as stream:
            if way == "close":
                next(stream)
                return None
            return prompt, "".join(stream)

    with ThreadPoolExecutor(6) as pool:
        for done in pool.map(one, plans):
            assert done is None or done[1] == expected[done[0]]


def test_a_full_queue_is_an_error_for_single_requests_and_a_wait_for_batches(
    llava, guard_on, slow_layers
):
    guard = guard_on(llava, limits=Limits(queue=1, batch=1))
    slow_layers(llava.model, 0.01)
    streams = [guard.stream("tell me", max_new_tokens=40)]
    next(streams[0])  # it runs
    streams.append(guard.stream("tell me", max_new_tokens=2))  # it waits
    with pytest.raises(QueueFullError, match=r"limits.queue"):
        guard.check("tell me")
    streams[0].close()
    assert len(guard.batch(["tell me", "hello", "what is this"], max_new_tokens=2)) == 3


def test_closing_a_guard_ends_its_requests_and_not_its_neighbours(llava, guard_on, slow_layers):
    guard, other = guard_on(llava), guard_on(llava)
    slow_layers(llava.model, 0.01)
    running = guard.stream("tell me", max_new_tokens=300)
    next(running)
    queued = guard.stream("tell me", max_new_tokens=300, num_beams=2)
    theirs = other.stream("hello", max_new_tokens=5)
    started = time.monotonic()
    guard.close()
    assert time.monotonic() - started < 5
    with pytest.raises(RequestCancelledError):
        list(running)
    with pytest.raises(GuardClosedError):
        list(queued)
    list(theirs)
    assert theirs.result.completion_tokens == 5


def test_an_audit_sink_that_asks_its_own_guard_is_an_error_not_a_deadlock(llava, guard_on, caplog):
    asked: list[object] = []

    def nosy(verdict, facts):
        try:
            guard.check("again")
        except RuntimeError as error:
            asked.append(error)
            raise

    guard = guard_on(llava, audit=nosy)
    assert guard.generate("tell me", max_new_tokens=2, timeout=WAIT).completion_tokens == 2
    assert not isinstance(asked[0], GuardrailError)
    assert "the audit sink failed" in caplog.text


def test_a_process_may_end_while_an_answer_is_being_made(tmp_path):
    """A thread inside the model at the interpreter's end would abort the process."""
    script = tmp_path / "leaves.py"
    script.write_text(
        "import time, torch\n"
        "from guardrail.model.jobs import Job\n"
        "from guardrail.model.worker import WorkerLease\n"
        "from guardrail.policy import Limits\n"
        "lease = WorkerLease(torch.nn.Linear(1, 1))\n"
        "def run(jobs):\n"
        "    while not jobs[0].cancelled.is_set():\n"
        "        torch.randn(64, 64) @ torch.randn(64, 64)\n"
        "    print('ended by', 'request', flush=True)\n"
        "lease.worker.submit(Job(run=run, owner=None, limits=Limits()))\n"
        "time.sleep(0.2)\n"
    )
    done = subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert (done.returncode, done.stdout) == (0, "ended by request\n"), done.stderr
