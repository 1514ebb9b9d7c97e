"""Guards on the tiny model, doubles that know words, and a LlamaIndex that is left as it was."""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING, Any

import pytest
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from pydantic import Field

from guardrail.guard import Guard
from guardrail.policy import Policy, Thresholds
from guardrail.testing import FakeGuard, tiny_artefact, tiny_model
from guardrail.types import Action, Modality, Verdict
from tests.channels import _llamaindex_llm as of_llama_index
from tests.channels._llamaindex_llm import OtherLLM
from tests.waiting import passes_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from PIL import Image

    from tests.waiting import Passes

FAR = 1e9
FORCED = {
    Action.PASS: Thresholds(steer=FAR, flag=FAR),
    Action.STEER: Thresholds(steer=-FAR, flag=FAR),
    Action.FLAG: Thresholds(steer=-FAR, flag=-FAR),
}


@pytest.fixture(autouse=True)
def llama_index_as_it_was() -> Iterator[None]:
    """A tokenizer that needs no download, and LlamaIndex's globals put back afterwards."""
    with of_llama_index.llama_index_as_it_was():
        yield


@pytest.fixture
def closed_loop() -> Iterator[None]:
    """A loop for LlamaIndex to find, which would make one and leave it open."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield
    asyncio.set_event_loop(None)
    loop.close()


class Recorder(BaseEventHandler):
    """Keeps every event that LlamaIndex tells about."""

    seen: list[Any] = Field(default_factory=list)

    @classmethod
    def class_name(cls) -> str:
        return "Recorder"

    def handle(self, event: Any, **kwargs: Any) -> None:
        self.seen.append(event)

    def names(self) -> list[str]:
        return [type(event).__name__ for event in self.seen]


@pytest.fixture
def events() -> Iterator[Recorder]:
    root, recorder = get_dispatcher(), Recorder()
    root.add_event_handler(recorder)
    yield recorder
    root.event_handlers.remove(recorder)


@pytest.fixture
def guard_on(llava: Any) -> Iterator[Callable[..., Guard]]:
    """`guard_on(Action.FLAG, on_flag="raise")`: on the tiny model, with no choice of action."""
    guards: list[Guard] = []

    def make(action: Action = Action.PASS, *, audit: Any = None, **policy: Any) -> Guard:
        policy.setdefault("thresholds", dict.fromkeys(Modality, FORCED[action]))
        policy["thresholds"].pop(Modality.VIDEO, None)
        artefact = tiny_artefact(llava.model, llava.processor)
        guard = Guard(
            (llava.model, llava.processor), artefact, policy=Policy(**policy), audit=audit
        )
        guards.append(guard)
        return guard

    yield make
    for guard in guards:
        guard.close()


@pytest.fixture
def png(picture: Callable[..., Image.Image]) -> Callable[..., bytes]:
    def make(seed: int = 0) -> bytes:
        file = io.BytesIO()
        picture(seed).save(file, "PNG")
        return file.getvalue()

    return make


class WordGuard(FakeGuard):
    """Flags what holds the word bad (or another, such as a picture), steers what holds odd."""

    def __init__(self, policy: Policy | None = None, flag: str = "bad", steer: str = "odd") -> None:
        super().__init__([flag], [steer], policy=policy)

    def check(self, value: Any, /, **options: Any) -> Verdict:
        super().check(value, **options)  # refuses what a guard refuses
        verdict = super().check(repr(value), **options)  # with paths and base64 as words
        self.seen.pop()
        return verdict

    def check_batch(self, values: Any, *, return_exceptions: bool = False) -> list[Any]:
        return [self.check(value) for value in values]


@pytest.fixture
def word_guard() -> type[WordGuard]:
    return WordGuard


@pytest.fixture
def other_llm() -> type[OtherLLM]:
    return OtherLLM


@pytest.fixture
def passes(llava: Any) -> Iterator[Passes]:
    """The model's forward passes, counted, and held where the test says so."""
    with passes_of(llava.model) as passes:
        yield passes


@pytest.fixture
def toolless() -> Iterator[Any]:
    """Model, processor and guard of a model whose chat template knows no tools."""
    model, processor = tiny_model("llava")
    start, end = (processor.chat_template.index(word) for word in ("{%- if tools", "{%- for mess"))
    processor.chat_template = processor.chat_template[:start] + processor.chat_template[end:]
    thresholds = dict.fromkeys((Modality.TEXT, Modality.IMAGE), FORCED[Action.PASS])
    artefact = tiny_artefact(model, processor)
    with Guard((model, processor), artefact, policy=Policy(thresholds=thresholds)) as guard:
        yield model, processor, guard
