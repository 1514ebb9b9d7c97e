"""What is worth another try, and what is not."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)

from guardrail.hub import ATTEMPTS, is_transient, with_retries

if TYPE_CHECKING:
    from collections.abc import Callable

CLIENT: Any = sys.modules[HfHubHTTPError.__bases__[0].__module__.partition(".")[0]]


@pytest.fixture(autouse=True)
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long was waited, without waiting."""
    slept: list[float] = []
    monkeypatch.setattr("tenacity.nap.time", SimpleNamespace(sleep=slept.append))
    return slept


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("reset"),
        TimeoutError("slow"),
        CLIENT.ConnectError("refused"),
        CLIENT.ReadTimeout("slow"),
    ],
    ids=repr,
)
def test_connection_errors_and_timeouts_are_transient(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_transient(status: int, http_error: Callable[..., Exception]) -> None:
    assert is_transient(http_error(status))


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, HfHubHTTPError), (403, GatedRepoError), (401, RepositoryNotFoundError)],
)
def test_a_missing_or_gated_repository_is_not_transient(
    status: int, kind: type[Exception], http_error: Callable[..., Exception]
) -> None:
    assert not is_transient(http_error(status, kind))


@pytest.mark.parametrize(
    "error",
    [
        OfflineModeIsEnabled("offline"),
        OSError("no such file"),
        ValueError("damaged"),
        LocalEntryNotFoundError("not cached"),
    ],
    ids=repr,
)
def test_what_will_not_change_is_not_tried_again(error: Exception, waits: list[float]) -> None:
    calls = []

    def fail() -> None:
        calls.append(1)
        raise error

    with pytest.raises(type(error)):
        with_retries(fail, what="x")
    assert len(calls) == 1
    assert not waits


def test_a_wrapped_connection_error_is_found() -> None:
    outer = OSError("could not load")
    outer.__cause__ = ValueError("while reading")
    outer.__cause__.__context__ = CLIENT.ConnectError("refused")
    assert is_transient(outer)


def test_a_call_that_recovers_gives_its_result(
    waits: list[float], http_error: Callable[..., Exception]
) -> None:
    answers = iter([ConnectionError("one"), http_error(503), "fine"])

    def flaky() -> str:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert with_retries(flaky, what="x") == "fine"
    assert len(waits) == 2
    assert 0.5 <= waits[0] <= 1.5


def test_the_last_error_is_raised_when_nothing_helps(waits: list[float]) -> None:
    calls = []

    def fail() -> None:
        calls.append(1)
        raise ConnectionError(f"try {len(calls)}")

    with pytest.raises(ConnectionError, match=f"try {ATTEMPTS}"):
        with_retries(fail, what="x")
    assert len(waits) == ATTEMPTS - 1
