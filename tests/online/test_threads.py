"""Many callers, one model: nobody gets another's answer, verdict or edit."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from guardrail.errors import (
    GuardClosedError,
    GuardrailError,
    ModelError,
    QueueFullError,
    RequestCancelledError,
    RequestTimeoutError,
)
from guardrail.model.decoder import decoder_layers
from guardrail.policy import Limits
from guardrail.types import Action
from tests.waiting import LONG_S, passes_of, until

PASS, STEER, FLAG = Action.PASS, Action.STEER, Action.FLAG
WAIT = LONG_S


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


@pytest.fixture
def sizes(monkeypatch):
    """`sizes(guard)`: how many requests each of its batches has, while they come."""

    def watch(guard):
        found: list[int] = []
        encode = guard._engine.encoder.encode

        def watched(requests):
            found.append(len(requests))
            return encode(requests)

        monkeypatch.setattr(guard._engine.encoder, "encode", watched)
        return found

    return watch


@pytest.mark.parametrize("action", [PASS, STEER])
def test_answers_of_unlike_lengths_stops_and_seeds_share_a_batch_and_are_the_lone_ones(
    tiny, guard_on, sizes, action
):
    limits = Limits(batch=5, batch_wait_s=WAIT)  # a full batch goes at once
    guard = guard_on(tiny, action, limits=limits, steer_tokens=2)
    prompts = [f"tell me about the cat {'and the dog ' * n}" for n in range(5)]
    whole = guard.generate(prompts[2], max_new_tokens=8)
    stop = next(letter for letter in whole.text if letter.isascii() and letter.isalpha())
    options = [
        {"max_new_tokens": 2},
        {"max_new_tokens": 9, "seed": 3},
        {"max_new_tokens": 8, "stop": (stop,)},
        {"max_new_tokens": 5, "temperature": 0, "top_p": 0.5},
        {"max_new_tokens": 1, "stop": ("never said",), "do_sample": False},
    ]
    asked = list(zip(prompts, options, strict=True))
    alone = [guard.generate(prompt, **how) for prompt, how in asked]
    batches = sizes(guard)
    jobs = [guard._asking.answer(prompt, how, wait=True) for prompt, how in asked]
    together = [job.future.result(WAIT) for job in jobs]
    assert batches == [5]

    def facts(result):
        tokens = (result.token_ids, result.prompt_tokens, result.completion_tokens)
        return tokens, result.text, result.finish_reason, result.verdict.action

    assert list(map(facts, together)) == list(map(facts, alone))
    assert [len(result.token_ids) for result in together][:2] == [2, 9]
    assert (together[2].finish_reason, stop in together[2].text) == ("stop", False)


def test_an_answer_is_settled_at_its_own_end_while_a_longer_one_goes_on(
    llava, guard_on, slow_layers
):
    guard = guard_on(llava, limits=Limits(batch=2, batch_wait_s=WAIT))
    slow_layers(llava.model, 0.01)
    long = guard._asking.answer("hello", {"max_new_tokens": 300}, wait=True)
    short = guard._asking.answer("tell me", {"max_new_tokens": 2}, wait=True)
    assert short.future.result(WAIT).completion_tokens == 2
    assert not long.future.done()
    guard._asking.give_up(long)


def test_sampled_answers_share_no_batch(llava, guard_on, sizes):
    guard = guard_on(llava, limits=Limits(batch=4, batch_wait_s=0.05))
    lone = guard.generate("tell me", max_new_tokens=6, temperature=2.0, seed=3)
    batches = sizes(guard)
    results = guard.batch(["tell me"] * 3, max_new_tokens=6, temperature=2.0, seed=3)
    assert batches == [1, 1, 1]
    assert {result.token_ids for result in results} == {lone.token_ids}


def test_an_exit_asked_for_inside_the_model_ends_one_request_and_no_thread(llava, guard_on):
    told: list[object] = []
    guard = guard_on(llava, audit=lambda verdict, facts: told.append((verdict, facts["event"])))

    def leave(*_):
        raise SystemExit(3)

    handle = decoder_layers(llava.model)[0].register_forward_pre_hook(leave)
    for ask in (guard.check, guard.generate):
        with pytest.raises(ModelError, match="SystemExit"):
            ask("tell me")
    handle.remove()
    assert told == [(None, "outage")] * 2
    assert guard.check("tell me").score is not None


def test_clients_take_turns_and_one_cannot_keep_the_others_out(llava, guard_on):
    guard = guard_on(llava, limits=Limits(queue=8, batch=1))
    with passes_of(llava.model) as passes:
        streams = [guard.stream("tell me", max_new_tokens=300, client="a")]
        next(streams[0])
        passes.hold()
        streams += [guard.stream("tell me", max_new_tokens=300, client="a") for _ in range(6)]
        with pytest.raises(QueueFullError, match="this client") as caught:
            guard.generate("tell me", client="a")
        assert 1 <= caught.value.retry_after_s <= 60
        single = guard.stream("hello", max_new_tokens=3, client="b")
        streams[0].close()
        passes.go_on()
        next(streams[1])  # its turn came first
        streams[1].close()
        assert "".join(single) == single.result.text
        passes.hold()
        assert guard.load.waiting + guard.load.running == 5  # the next one may have begun
        passes.go_on()
        for stream in streams:
            stream.close()


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
    try:
        for _ in range(8):
            assert guard.generate("tell me about the dog", max_new_tokens=6).token_ids == steered
    finally:
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


def test_a_full_queue_is_an_error_for_single_requests_and_a_wait_for_batches(llava, guard_on):
    guard = guard_on(llava, limits=Limits(queue=1, batch=1))
    with passes_of(llava.model) as passes:
        streams = [guard.stream("tell me", max_new_tokens=40)]
        next(streams[0])  # it runs
        passes.hold()
        streams.append(guard.stream("tell me", max_new_tokens=2))  # it waits
        with pytest.raises(QueueFullError, match=r"limits.queue"):
            guard.check("tell me")
        streams[0].close()
    assert len(guard.batch(["tell me", "hello", "what is this"], max_new_tokens=2)) == 3


def test_closing_a_guard_ends_its_requests_and_not_its_neighbours(llava, guard_on):
    guard, other = guard_on(llava), guard_on(llava)
    with passes_of(llava.model) as passes:
        running = guard.stream("tell me", max_new_tokens=300)
        next(running)
        passes.hold()
        until(passes.held)
        before = passes.begun
        queued = guard.stream("tell me", max_new_tokens=300, num_beams=2)
        theirs = other.stream("hello", max_new_tokens=5)
        closing = threading.Thread(target=guard.close)
        closing.start()
        until(queued._job.future.done)
        passes.go_on()
        closing.join(WAIT)
        with pytest.raises(RequestCancelledError):
            list(running)
        with pytest.raises(GuardClosedError):
            list(queued)
        list(theirs)
        assert theirs.result.completion_tokens == 5
        assert passes.begun - before <= 5


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


def own_process(script):
    """A script run to its end by an interpreter of its own, with this one's modules."""
    return subprocess.run(
        [sys.executable, script],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_a_process_may_end_while_an_answer_is_being_made(tmp_path):
    """A thread inside the model at the interpreter's end would abort the process."""
    script = tmp_path / "leaves.py"
    script.write_text(
        "import threading, torch\n"
        "from guardrail.worker.jobs import Job\n"
        "from guardrail.worker.worker import WorkerLease\n"
        "from guardrail.policy import Limits\n"
        "lease = WorkerLease(torch.nn.Linear(1, 1))\n"
        "begun = threading.Event()\n"
        "def run(jobs):\n"
        "    begun.set()\n"
        "    while not jobs[0].cancelled.is_set():\n"
        "        torch.randn(64, 64) @ torch.randn(64, 64)\n"
        "    print('ended by', 'request', flush=True)\n"
        "lease.worker.submit(Job(run=run, owner=None, limits=Limits()))\n"
        "assert begun.wait(60)\n"
    )
    done = own_process(script)
    assert (done.returncode, done.stdout) == (0, "ended by request\n"), done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_fork_of_a_busy_process_answers_its_own_requests_and_not_its_parents(tmp_path):
    script = tmp_path / "forks.py"
    script.write_text(
        "import os, signal, threading, torch\n"
        "from guardrail.model import settings\n"
        "from guardrail.worker.jobs import Job\n"
        "from guardrail.worker.worker import WorkerLease\n"
        "from guardrail.policy import Limits\n"
        "lease = WorkerLease(torch.nn.Linear(1, 1))\n"
        "worker = lease.worker\n"
        "entered, leave = threading.Event(), threading.Event()\n"
        "def slow(jobs):\n"
        "    with settings._DRAWING, worker._changed:\n"
        "        entered.set()\n"
        "        leave.wait(60)\n"
        "def quick(jobs):\n"
        "    ran.append(jobs[0].owner)\n"
        "    with settings._DRAWING:\n"
        "        jobs[0].settle(jobs[0].owner)\n"
        "def ask(run, owner):\n"
        "    job = Job(run=run, owner=owner, limits=Limits())\n"
        "    worker.submit(job)\n"
        "    return job\n"
        "ran = []\n"
        "ask(slow, 'slow')\n"
        "waits = Job(run=quick, owner='waits', limits=Limits())\n"
        "worker._waiting.push(waits)\n"
        "assert entered.wait(60)\n"
        "if os.fork() == 0:\n"
        "    signal.alarm(60)\n"
        "    print(worker.load(Limits()).waiting, ask(quick, 'child').future.result(60), ran)\n"
        "    os._exit(os.sys.stdout.flush() or 0)\n"
        "print('child', os.wait()[1], flush=True)\n"
        "leave.set()\n"
        "print(waits.future.result(60), flush=True)\n"
    )
    done = own_process(script)
    assert (done.returncode, done.stdout) == (0, "0 child ['child']\nchild 0\nwaits\n"), done.stderr
