"""How the tests of the tiny families ask their models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from guardrail.testing import family

if TYPE_CHECKING:
    from collections.abc import Callable

Chat = list[dict[str, Any]]


@pytest.fixture(scope="session")
def user() -> Callable[..., Chat]:
    """A chat of one message: `user(family, text, *media)`; arrays are videos, the rest pictures."""

    def make(name: str, text: str, *media: Any) -> Chat:
        kinds = ["video" if isinstance(m, np.ndarray | list) else "image" for m in media]
        parts = [{"type": k, k: m} for k, m in zip(kinds, media, strict=True)]
        said = {"type": "text", "text": text}
        return [{"role": "user", "content": [*parts, said] if family(name).pictures else text}]

    return make


@pytest.fixture(scope="session")
def encode() -> Callable[..., dict[str, Any]]:
    """The family's inputs for several chats, padded on the left: `encode(tiny, *chats)`."""

    def make(tiny: Any, *chats: Chat, tools: Any = None, **options: Any) -> dict[str, Any]:
        padding = {"padding_side": "left"}
        if family(tiny.family).pictures:
            options = {"processor_kwargs": {**padding, "padding": True, **options}}
        else:
            options = {"tokenizer_kwargs": padding, "padding": True}
        inputs = tiny.processor.apply_chat_template(
            list(chats),
            tools=tools,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=True,
            **options,
        )
        return dict(inputs)

    return make


@pytest.fixture(scope="session")
def last() -> Callable[..., torch.Tensor]:
    """Hidden states at the last position: `last(tiny, inputs)`, (layers + 1, rows, width)."""

    @torch.no_grad()
    def run(tiny: Any, inputs: dict[str, Any]) -> torch.Tensor:
        # PaliGemma's processor always writes labels; with every one of them masked the loss is nan
        wanted = {key: value for key, value in inputs.items() if key != "labels"}
        output = tiny.model(**wanted, output_hidden_states=True)
        if "hidden_states" not in output:
            output = output.language_model_outputs
        return torch.stack([state[:, -1] for state in output.hidden_states])

    return run


@pytest.fixture(scope="session")
def video(picture: Any) -> Callable[..., np.ndarray]:
    """Noise in frames: `video(seed=0, frames=4)`, (frames, height, width, 3), uint8."""

    def make(seed: int = 0, frames: int = 4) -> np.ndarray:
        return np.stack([np.asarray(picture(100 * seed + i)) for i in range(frames)])

    return make
