"""Which of the product's files a call passes through: what its reader has to open."""

from __future__ import annotations

import asyncio
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    from typer.testing import Result

ROOT = Path(__file__).resolve().parent.parent
_PRODUCT = (f"{ROOT}/guardrail/", f"{ROOT}/integrations/")


def files_walked(call: Callable[[], object]) -> set[str]:
    """The product's files with a function that ran during `call`, relative to the repository.

    Followed are this thread and those that start meanwhile, so a guard should have had no request
    before. What a module does while it is imported does not count.
    """
    walked: set[str] = set()

    # a trace, since a profile would also be told of every call of what is not Python
    def note(frame: FrameType, _event: str, _arg: Any) -> None:
        name = frame.f_code.co_filename
        if name not in walked and name.startswith(_PRODUCT) and not _is_importing(frame):
            walked.add(name)

    threading.settrace(note)
    sys.settrace(note)
    try:
        call()
    finally:
        sys.settrace(None)
        threading.settrace(None)
    return {str(Path(name).relative_to(ROOT)) for name in walked}


def chat_walk() -> set[str]:
    """The files of a chat over HTTP, from the request to the guard and back to the answer.

    Without those of `Guard.generate`, which has a walk of its own.
    """
    import httpx

    from guardrail.guard import Guard
    from guardrail.server import create_app
    from guardrail.testing import tiny_artefact, tiny_model

    pair = tiny_model()
    artefact = tiny_artefact(*pair)
    chat = [{"role": "user", "content": "Name a fruit"}]

    async def ask(client: httpx.AsyncClient) -> None:
        body = {"model": "guarded", "messages": chat, "max_tokens": 1}
        (await client.post("/v1/chat/completions", json=body)).raise_for_status()

    with Guard(pair, artefact) as alone, Guard(pair, artefact) as served:
        transport = httpx.ASGITransport(create_app(served))
        client = httpx.AsyncClient(transport=transport, base_url="http://server")
        generated = files_walked(lambda: alone.generate(chat, max_new_tokens=1))
        return files_walked(lambda: asyncio.run(ask(client))) - generated


def _is_importing(frame: FrameType | None) -> bool:
    """Whether one of the product's modules is being imported on this thread."""
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_code.co_filename.startswith(_PRODUCT):
            return True
        frame = frame.f_back
    return False


def generate_walk() -> set[str]:
    """What `guard.generate` passes for a text and a picture, on a tiny model."""
    from PIL import Image

    from guardrail import Guard
    from guardrail.testing import tiny_artefact, tiny_model

    model, processor = tiny_model()
    picture = {"type": "image", "image": Image.new("RGB", (30, 30))}
    chat = [{"role": "user", "content": [picture, {"type": "text", "text": "What is it?"}]}]
    with Guard((model, processor), tiny_artefact(model, processor, tau_flag=1e6)) as guard:
        return files_walked(lambda: guard.generate(chat, max_new_tokens=3))


def fit_walk() -> set[str]:
    """What `guardrail fit` passes, for a saved tiny model and a small contrast file."""
    from typer.testing import CliRunner

    from guardrail.cli.main import app
    from guardrail.model.load import wrap_model
    from guardrail.testing import tiny_model
    from tests.conftest import fewer_forms_read
    from tests.fit.conftest import plant, write_rows

    loaded = wrap_model(*tiny_model("llama", seed=3))
    plant(loaded)
    with TemporaryDirectory() as made:
        folder = Path(made)
        loaded.model.save_pretrained(folder)
        loaded.processor.save_pretrained(folder)
        words = ["fit", made, "-o", str(folder / "made.safetensors")]
        words += ["--replace-data", "--data", str(write_rows(folder / "contrast.jsonl"))]
        words += ["--steer-rate", "0.2", "--flag-rate", "0.1"]
        done: list[Result] = []
        with fewer_forms_read():
            walked = files_walked(lambda: done.append(CliRunner().invoke(app, words)))
        if done[0].exit_code:
            raise RuntimeError(done[0].output)
        return walked
