from __future__ import annotations

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from guardrail.inputs.messages import to_request
from guardrail.inputs.threads import Decoders, patience, still_wanted
from guardrail.policy import Policy, VideoSampling

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class GoneError(Exception):
    pass


@contextmanager
def patience_for(asks: int) -> Iterator[None]:
    def ask() -> None:
        nonlocal asks
        asks -= 1
        if asks < 0:
            raise GoneError

    with patience(ask):
        yield


def read(video: Any) -> Any:
    rules = Policy(video=VideoSampling(scenes=False, window=8))
    (part,) = to_request(
        [{"role": "user", "content": [{"type": "video", "video": video}]}], policy=rules
    ).videos
    return part


def test_a_video_is_read_no_further_once_nobody_waits(film):
    data = film(48)  # at 8 a second; 3 of 4 frames are only looked at
    with pytest.raises(GoneError), patience_for(10):
        read(data)
    stream = read(data)
    with pytest.raises(GoneError), patience_for(40):
        list(stream.windows)
    assert len(list(stream.windows)) == 2  # the other asker's impatience is not ours


def test_no_further_frame_of_a_list_is_opened_either(tmp_path):
    frames: list[Any] = [np.zeros((4, 4, 3), np.uint8)] * 3
    with pytest.raises(GoneError), patience_for(3):
        read([*frames, tmp_path / "missing.png"])


def test_without_an_asker_reading_goes_on():
    still_wanted()


WAIT = 60.0

LARGE = 40_000_000

told: ContextVar[str] = ContextVar("told", default="nothing")


class Blocked:
    """Work that is in a decoder until it is let go."""

    def __init__(self) -> None:
        self.begun, self.leave = threading.Event(), threading.Event()

    def __call__(self) -> str:
        self.begun.set()
        assert self.leave.wait(WAIT)
        return "done"


@pytest.fixture
def callers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(8) as pool:
        yield pool


def test_results_errors_and_the_callers_context_go_through() -> None:
    decoders = Decoders(1)
    told.set("something")
    assert decoders.result(lambda: (told.get(), threading.current_thread().name)) == (
        "something",
        "guardrail-decoder",
    )
    for error in (KeyError("a"), TimeoutError("b")):

        def fails(error: Exception = error) -> None:
            raise error

        with pytest.raises(type(error)) as caught:
            decoders.result(fails)
        assert caught.value is error


def test_an_error_does_not_write_the_work_down() -> None:
    class Shown:
        def __call__(self) -> None:
            raise GoneError

        def __repr__(self) -> str:
            pytest.fail("it was written down")

    with pytest.raises(GoneError):
        Decoders(1).result(Shown())


def test_no_small_picture_waits_for_large_ones(callers: ThreadPoolExecutor) -> None:
    decoders, first, second = Decoders(1), Blocked(), Blocked()
    large = [callers.submit(decoders.result, first, pixels=LARGE)]
    assert first.begun.wait(WAIT)  # before the other is asked for, which could be the first else
    large.append(callers.submit(decoders.result, second, pixels=LARGE))
    assert decoders.result(lambda: "small") == "small"
    assert not second.begun.is_set()
    first.leave.set()
    assert second.begun.wait(WAIT)
    second.leave.set()
    assert [each.result(WAIT) for each in large] == ["done", "done"]


def test_what_nobody_waits_for_any_more_is_not_begun(callers: ThreadPoolExecutor) -> None:
    decoders, ran, asked = Decoders(1), [], threading.Event()
    blocked = [Blocked(), Blocked()]
    before = [callers.submit(decoders.result, work) for work in blocked]
    assert all(work.begun.wait(WAIT) for work in blocked)

    def gone() -> None:
        if asked.is_set():
            raise GoneError
        asked.set()

    with patience(gone), pytest.raises(GoneError):
        decoders.result(lambda: ran.append("too late"))
    for work in blocked:
        work.leave.set()
    assert [each.result(WAIT) for each in before] == ["done", "done"]
    both = threading.Barrier(2)  # either thread has looked for work since
    for each in [callers.submit(decoders.result, lambda: both.wait(WAIT)) for _ in range(2)]:
        each.result(WAIT)
    assert ran == []


def test_what_nobody_waited_for_from_the_start_does_not_wait_either() -> None:
    def gone() -> None:
        raise GoneError

    with patience(gone), pytest.raises(GoneError):
        Decoders(1).result(lambda: pytest.fail("it ran"))


def test_a_caller_that_left_does_not_disturb_the_thread_that_works_for_it(
    callers: ThreadPoolExecutor,
) -> None:
    decoders, work = Decoders(1), Blocked()

    def gone_once_begun() -> None:
        if work.begun.is_set():
            raise GoneError

    with patience(gone_once_begun), pytest.raises(GoneError):
        decoders.result(work, pixels=LARGE)
    later = callers.submit(decoders.result, lambda: "later", pixels=LARGE)
    work.leave.set()
    assert later.result(WAIT) == "later"


def own_process(tmp_path: Path, script: str) -> Any:
    (tmp_path / "script.py").write_text(
        "import os, signal, threading\n"
        "from guardrail.inputs.threads import DECODERS\n"
        "begun, leave = threading.Event(), threading.Event()\n"
        "def block():\n"
        "    begun.set()\n"
        "    leave.wait(600)\n"
        "def ask():\n"
        "    DECODERS.result(block, pixels=40_000_000)\n"
        "threading.Thread(target=ask, daemon=True).start()\n"
        "begun.wait(60)\n" + script
    )
    return subprocess.run(
        [sys.executable, tmp_path / "script.py"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_a_process_may_end_while_a_picture_is_decoded_and_another_waits(tmp_path: Path) -> None:
    done = own_process(
        tmp_path, "for _ in range(9): threading.Thread(target=ask, daemon=True).start()\n"
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no forks here")
def test_a_fork_of_a_busy_process_has_decoders_of_its_own(tmp_path: Path) -> None:
    script = (
        "with DECODERS._changed:\n"
        "    child = os.fork()\n"
        "if child == 0:\n"
        "    signal.alarm(60)\n"
        "    os._exit(DECODERS.result(lambda: 7, pixels=40_000_000))\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
    )
    done = own_process(tmp_path, script)
    assert (done.returncode, done.stdout) == (0, "7\n"), done.stderr
