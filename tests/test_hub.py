"""What is worth another try, and what is not."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
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

from guardrail.hub import ATTEMPTS, hub_file, is_transient, with_retries

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


def test_no_try_is_begun_once_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("tenacity.time", SimpleNamespace(monotonic=lambda: now[0]))
    calls = []

    def hang() -> None:
        calls.append(1)
        now[0] += 10
        raise TimeoutError("slow")

    with pytest.raises(TimeoutError):
        with_retries(hang, what="x", within=15)
    assert len(calls) == 2


@pytest.fixture
def hub(hub_server: Any, tmp_path: Path) -> Any:
    """A Hub with one file in one repository."""
    hub_server.repositories["owner/one"] = tmp_path / "one"
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "config.json").write_text("{}")
    return hub_server


def test_a_file_comes_from_the_hub_at_its_commit(hub: Any) -> None:
    path, online = hub_file("owner/one", "config.json")
    assert (Path(path).read_text(), Path(path).parent.name) == ("{}", hub.commit)
    assert online


def test_a_hub_that_is_busy_for_a_moment_is_asked_again(hub: Any) -> None:
    hub.failing = 2
    assert hub_file("owner/one", "config.json").online


def test_a_hub_that_does_not_answer_is_asked_by_one_layer_of_retries(hub: Any) -> None:
    hub.failing = 1000
    with pytest.raises(ConnectionError, match="did not answer, check the connection"):
        hub_file("owner/one", "config.json")
    assert len(hub.asked) == ATTEMPTS


def test_no_hub_at_all_is_told_by_the_same_number_of_tries(
    hub: Any, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        hub.listens_at(unused.getsockname()[1], monkeypatch)
        with pytest.raises(ConnectionError, match="did not answer"):
            hub_file("owner/one", "config.json")
    assert len(waits) == ATTEMPTS - 1


def test_what_is_in_the_cache_is_asked_for_once_and_used(hub: Any) -> None:
    known = hub_file("owner/one", "config.json").path
    hub.asked.clear()
    hub.failing = 1000
    assert hub_file("owner/one", "config.json") == (known, False)
    assert len(hub.asked) == 1


@pytest.mark.parametrize("how", ["argument", "variable"])
def test_offline_mode_asks_nothing(hub: Any, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    local = how == "argument"
    known = hub_file("owner/one", "config.json").path
    hub.asked.clear()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", not local)
    assert hub_file("owner/one", "config.json", local_files_only=local) == (known, False)
    with pytest.raises(LocalEntryNotFoundError):
        hub_file("owner/other", "config.json", local_files_only=local)
    assert hub.asked == []


def test_what_the_hub_no_longer_gives_is_read_from_the_cache_alone(hub: Any) -> None:
    known = hub_file("owner/one", "config.json").path
    hub.repositories.clear()
    assert hub_file("owner/one", "config.json").path == known
    hub.asked.clear()
    with pytest.raises(RepositoryNotFoundError):
        hub_file("owner/other", "config.json")
    assert len(hub.asked) == 1
