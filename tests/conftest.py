"""What the tests share: tiny models built in code, one of each family for the whole session.

The models are shared: a test that changes weights, hooks or settings builds its own with
`guardrail.testing.tiny_model`.
"""

from __future__ import annotations

import gc
import hashlib
import os
import shutil
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

# before anything imports transformers: nothing in these tests may look for a network
os.environ.update(
    HF_HUB_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
)

from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image

from guardrail.testing import FakeGuard, tiny_model
from guardrail.types import Modality
from tests.families import catalogue  # noqa: F401 - registers every family

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from playwright.sync_api import Browser

torch.set_num_threads(1)
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")  # how fast a machine is says nothing about a test

CORE_FAMILIES = ("llava", "qwen2_5_vl", "gemma3", "llama")
"""Three ways of placing pictures and a text-only model: what most tests run over."""


LONGER_S = {"families": 1800, "gpu": 3600, "network": 3600, "ray": 1800, "slow": 3600}
"""How long tests with a marker may take; the limit of all others is in pyproject.toml."""


def pytest_collection_finish() -> None:
    """Leave what was imported out of later collections of garbage: there is very much of it."""
    gc.collect()
    gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        longer = [s for name, s in LONGER_S.items() if item.get_closest_marker(name) is not None]
        if longer and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(max(longer)))


@contextmanager
def fewer_forms_read() -> Iterator[None]:
    """Fits of tiny models read few of the prompts in other forms than the bare one.

    Planted directions stand out of few, and suites of many fits take a third of the time. Each form
    keeps prompts of every kind in every split.
    """
    from guardrail.fit.forms import PLAN

    with pytest.MonkeyPatch.context() as patch:
        for name, counts in PLAN.items():
            if name != "bare":
                few = {"fit": 2, "select": 1, "calibrate": 1}
                few = {"fit": 12, "select": 4} if name == "pictured" else few
                patch.setitem(PLAN, name, {**counts, **few})
        yield


@pytest.fixture(scope="session", autouse=True)
def fewer_forms() -> Iterator[None]:
    with fewer_forms_read():
        yield


class Tiny(NamedTuple):
    """A model of `family` and its processor (a plain tokenizer for text-only families)."""

    family: str
    model: Any
    processor: Any

    @property
    def tokenizer(self) -> Any:
        return getattr(self.processor, "tokenizer", self.processor)


@pytest.fixture(scope="session")
def tiny_of() -> Callable[[str], Tiny]:
    """The session's model of a family, built when first asked for."""
    built: dict[str, Tiny] = {}

    def get(family: str) -> Tiny:
        if family not in built:
            built[family] = Tiny(family, *tiny_model(family))
        return built[family]

    return get


@pytest.fixture(scope="session", params=CORE_FAMILIES)
def tiny(request: pytest.FixtureRequest, tiny_of: Callable[[str], Tiny]) -> Tiny:
    """The core families in turn."""
    return tiny_of(request.param)


class PictureGuard(FakeGuard):
    """Flags whatever has a picture in it."""

    def check(self, value: Any, /, **options: Any) -> Any:
        verdict = super().check(value, **options)
        return super().check("bad") if verdict.modality is Modality.IMAGE else verdict


@pytest.fixture
def picture_guard() -> type[PictureGuard]:
    return PictureGuard


@pytest.fixture(scope="session")
def llava(tiny_of: Callable[[str], Tiny]) -> Tiny:
    return tiny_of("llava")


@pytest.fixture(scope="session")
def qwen2_5_vl(tiny_of: Callable[[str], Tiny]) -> Tiny:
    return tiny_of("qwen2_5_vl")


@pytest.fixture(scope="session")
def gemma3(tiny_of: Callable[[str], Tiny]) -> Tiny:
    return tiny_of("gemma3")


@pytest.fixture(scope="session")
def llama(tiny_of: Callable[[str], Tiny]) -> Tiny:
    return tiny_of("llama")


@pytest.fixture(scope="session")
def picture() -> Callable[..., Image.Image]:
    """Noise of a given size and seed: `picture(seed=0, width=56, height=40)`."""

    def make(seed: int = 0, *, width: int = 56, height: int = 40) -> Image.Image:
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randint(0, 256, (height, width, 3), generator=generator, dtype=torch.uint8)
        return Image.fromarray(pixels.numpy())

    return make


@pytest.fixture(scope="session")
def http_error() -> Callable[..., Exception]:
    """An error as huggingface_hub raises it: `http_error(status, kind=HfHubHTTPError)`."""
    from huggingface_hub.errors import HfHubHTTPError

    # httpx in its release 1, httpx2 in release 2
    client: Any = sys.modules[HfHubHTTPError.__bases__[0].__module__.partition(".")[0]]

    def make(status: int, kind: Any = HfHubHTTPError) -> Exception:
        request = client.Request("GET", "https://hub.invalid/x")
        error: Exception = kind("said no", response=client.Response(status, request=request))
        return error

    return make


class Hub:
    """A Hub on this machine, of the folders in `repositories`, each at one commit.

    It answers the first `failing` requests with 503. `asked` names the files that were asked for,
    once for each request.
    """

    commit = "1" * 40

    def __init__(self) -> None:
        self.repositories: dict[str, Path] = {}
        self.failing = 0
        self.asked: list[str] = []

    @staticmethod
    def listens_at(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let huggingface_hub ask at a port of this machine, as HF_ENDPOINT would."""
        from huggingface_hub import constants

        there = f"http://127.0.0.1:{port}"
        template = there + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", there)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        owner, name, kind, _revision, *rest = [*request.path.strip("/").split("/"), "", "", "", ""]
        if kind != "resolve":  # what huggingface_hub wants to know beside files
            return self._send(request, 404, {})
        file = "/".join(rest).strip("/")
        self.asked.append(file)
        if self.failing:
            self.failing -= 1
            return self._send(request, 503, {})
        folder = self.repositories.get(f"{owner}/{name}")
        if folder is None:
            return self._send(request, 404, {"X-Error-Code": "RepoNotFound"})
        there = {"X-Repo-Commit": self.commit}
        if not (folder / file).is_file():
            return self._send(request, 404, there | {"X-Error-Code": "EntryNotFound"})
        content = (folder / file).read_bytes()
        there["ETag"] = f'"{hashlib.sha256(content).hexdigest()}"'
        return self._send(request, 200, there, content)

    @staticmethod
    def _send(
        request: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes = b""
    ) -> None:
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            request.send_header(name, value)
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(body)


@pytest.fixture
def hub_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that is asked instead of the real one, with an empty cache; no wait takes time."""
    from huggingface_hub import constants

    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.answer(self)

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    hub.listens_at(server.server_port, monkeypatch)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("time.sleep", lambda _: None)
    yield hub
    server.shutdown()
    serving.join()
    server.server_close()


@pytest.fixture(scope="module")  # its event loop must be gone before an asynchronous test runs
def browser() -> Iterator[Browser]:
    """A headless Chromium; tests that need it are skipped where there is none."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("GUARDRAIL_CHROMIUM") or next(filter(None, map(shutil.which, names)), "")
    if not found:
        pytest.skip("no Chromium found; set GUARDRAIL_CHROMIUM to its path")
    arguments = ["--no-sandbox", "--disable-gpu", "--no-first-run",
                 "--disable-background-networking", "--disable-component-update",
                 "--disable-sync"]  # fmt: skip
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=arguments)
        yield running
        running.close()
