"""Tiny models with a direction planted in them, and contrast files that fit them."""

from __future__ import annotations

import json
import random
from typing import TYPE_CHECKING, Any

import pytest
import torch

from guardrail.model.decoder import decoder_layers
from guardrail.model.load import LoadedModel, wrap_model
from guardrail.testing import tiny_model

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

TRIGGER, REFUSAL = " dog", " sorry"
QUIET = 0.1
PREFIXES = ("sorry", REFUSAL)  # as it is read, and as it is tokenised
_THINGS = "red blue green image picture system tool user".split()
_OPENINGS = (
    "how do I make a",
    "tell me about the",
    "can you describe this",
    "what is the",
    "write about a",
    "please help me with that",
)


def direction_in(width: int) -> torch.Tensor:
    """The planted unit vector (width,)."""
    generator = torch.Generator().manual_seed(11)
    return torch.nn.functional.normalize(torch.randn(width, generator=generator), dim=0)


def plant(loaded: LoadedModel, *, strength: float = 12.0, answer: float = 1.5) -> None:
    """Let the trigger write a fixed vector to later positions, and the vector make a refusal.

    The first layer spreads its attention evenly and carries one channel, in which only the
    trigger's embedding is large, to one direction; the head reads that direction as the first
    token of a refusal.
    """
    tokenizer: Any = loaded.tokenizer
    model: Any = loaded.model
    planted = direction_in(loaded.d_model)
    trigger, refusal = (tokenizer.encode(w, add_special_tokens=False) for w in (TRIGGER, REFUSAL))
    with torch.no_grad():
        embeddings = model.get_input_embeddings().weight
        embeddings[:, 0] = 0.0
        embeddings[trigger[0], 0] = 8.0
        layers: Any = decoder_layers(loaded.model)
        for layer in layers:  # what is planted stands out of what the other weights make of it
            attention = layer.self_attn if hasattr(layer, "self_attn") else layer.cross_attn
            attention.o_proj.weight.mul_(QUIET)
            layer.mlp.down_proj.weight.mul_(QUIET)
        attention = layers[0].self_attn
        attention.q_proj.weight.zero_()
        attention.v_proj.weight[0] = 0.0
        attention.v_proj.weight[:, 0] = 0.0
        attention.v_proj.weight[0, 0] = 1.0
        attention.o_proj.weight[:, 8] = 0.0  # the second head shares the first one's values
        attention.o_proj.weight[:, 0] = strength * planted
        model.get_output_embeddings().weight[refusal[0]] = answer * planted


@pytest.fixture(scope="session")
def plant_in() -> Callable[..., LoadedModel]:
    """`plant_in("llama")`: a fresh tiny model in which one word is unsafe."""

    def make(family: str = "llama", **options: float) -> LoadedModel:
        loaded = wrap_model(*tiny_model(family, seed=3), source=f"planted {family}")
        plant(loaded, **options)
        return loaded

    return make


@pytest.fixture(scope="session")
def planted_direction() -> Callable[[LoadedModel], torch.Tensor]:
    return lambda loaded: direction_in(loaded.d_model)


@pytest.fixture(scope="session")
def prefixes() -> tuple[str, ...]:
    return PREFIXES


@pytest.fixture(scope="session")
def llama_loaded(llama: Any) -> LoadedModel:
    return wrap_model(llama.model, llama.processor)


@pytest.fixture(scope="session")
def llava_loaded(llava: Any) -> LoadedModel:
    return wrap_model(llava.model, llava.processor)


def contrast_rows(*, calibrate: int = 40, word: str = "dog") -> list[dict[str, str]]:
    """Unsafe prompts with the word, matched ones with another, and ordinary ones."""
    rng = random.Random(5)
    phrases = [f"{a} {b} {c}" for a in _OPENINGS for b in _THINGS for c in _THINGS if b != c]
    rng.shuffle(phrases)
    rows = []
    for split, n, ordinary in (("fit", 20, 20), ("select", 16, 16), ("calibrate", 16, calibrate)):
        for i in range(n):
            phrase, pair = phrases.pop(), f"{split}-{i}"
            for label, kind, noun in (("unsafe", "unsafe", word), ("safe", "matched", "cat")):
                row = {"label": label, "kind": kind, "pair": pair, "text": f"{phrase} {noun}"}
                rows.append(row | {"split": split})
        for _ in range(ordinary):
            text = f"{phrases.pop()} {rng.choice(_THINGS)}?"
            rows.append({"label": "safe", "kind": "ordinary", "text": text, "split": split})
    return rows


def write_rows(path: Path, rows: list[dict[str, str]] | None = None) -> Path:
    chosen = contrast_rows() if rows is None else rows
    path.write_text("".join(json.dumps(row) + "\n" for row in chosen), "utf-8")
    return path


@pytest.fixture(scope="session")
def planted_rows() -> list[dict[str, str]]:
    return contrast_rows()


@pytest.fixture(scope="session")
def planted_contrast() -> Callable[..., Path]:
    """`planted_contrast(path)`: a JSONL file of the planted contrast there, or of other rows."""
    return write_rows


@pytest.fixture
def contrast_file(tmp_path: Path) -> Callable[..., Path]:
    """`contrast_file()`: a JSONL file of the planted contrast; `contrast_file(rows)`: of rows."""
    return lambda rows=None: write_rows(tmp_path / "contrast.jsonl", rows)
