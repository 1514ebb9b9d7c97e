"""Detectors that decide by number, requests in one line, and a slow reference."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from guardrail.model.encode import Encoded, Encoder
from guardrail.model.load import LoadedModel, wrap_model
from guardrail.types import Action, ImagePart, Message, Request, TextPart

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from guardrail.types import RowParts


@dataclass
class FakeDetector:
    """Gives each request the action it was made with; steers along a fixed direction."""

    wanted: Sequence[Action]
    layers: tuple[int, ...] = (1, 2)
    steering_layer: int | None = 2
    steer_tokens: int = 0
    strength: float = 40.0
    broken: str = ""  # decide | edit | nan
    seen: list[Tensor] = field(default_factory=list)

    @property
    def reads(self) -> tuple[int, ...]:
        return self.layers

    def reading(self, rows: Sequence[RowParts], prompt_len: int) -> None:
        """Nothing beside the last position."""

    def decide(self, residuals: Tensor, kinds: Sequence[str], *_beside: object) -> Any:
        if self.broken == "decide":
            raise RuntimeError("no detector today")
        self.seen.append(residuals)
        each = len(kinds) // len(self.wanted)
        actions = [action for action in self.wanted for _ in range(each)]
        return SimpleNamespace(actions=actions, failed=[self.broken == "nan"] * len(kinds))

    def edit(self, decision: Any, residual: Tensor, kinds: Sequence[str]) -> Tensor:
        if self.broken == "edit":
            raise RuntimeError("no edit today")
        generator = torch.Generator().manual_seed(7)
        direction = torch.randn(residual.shape[1], generator=generator)
        steered = torch.tensor([a is Action.STEER for a in decision.actions]).float()
        return steered[:, None] * self.strength * direction / direction.norm()


@pytest.fixture
def fake() -> type[FakeDetector]:
    return FakeDetector


@pytest.fixture(scope="session")
def loaded_of() -> Callable[[Any], LoadedModel]:
    return lambda tiny: wrap_model(tiny.model, tiny.processor)


@pytest.fixture(scope="session")
def ask() -> Callable[..., Request]:
    """`ask("text", image)`: one user turn, pictures first."""

    def make(text: str, *images: Any) -> Request:
        parts = (*(ImagePart(image) for image in images), TextPart(text))
        return Request((Message(role="user", parts=parts),))

    return make


@pytest.fixture(scope="session")
def two(
    ask: Callable[..., Request], picture: Callable[..., Any]
) -> Callable[[LoadedModel], Encoded]:
    """Two requests of unequal length, with a picture each where the model takes any."""

    def encode(loaded: LoadedModel) -> Encoded:
        images = [[picture(seed)] if loaded.is_multimodal else [] for seed in (0, 1)]
        requests = [
            ask("hello", *images[0]),
            ask("tell me about the cat and the dog in this picture", *images[1]),
        ]
        return Encoder(loaded).encode(requests)

    return encode


@pytest.fixture(scope="module")
def saved(
    tiny_of: Callable[[str], Any], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """The folder of a family's saved model; not to be changed."""
    folders: dict[str, Path] = {}

    def get(family: str) -> Path:
        if family not in folders:
            folders[family] = tmp_path_factory.mktemp(family)
            tiny = tiny_of(family)
            tiny.model.save_pretrained(folders[family])
            tiny.processor.save_pretrained(folders[family])
        return folders[family]

    return get
