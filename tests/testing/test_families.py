"""What `tiny_model` builds by itself, and how it is taught more."""

from __future__ import annotations

from typing import Any

import pytest

from guardrail.testing import FAMILIES, IMAGE_FAMILIES, VIDEO_FAMILIES, Family, family, tiny_model
from guardrail.testing import families as known


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Only what users have, without the families of these tests."""
    monkeypatch.setattr(known, "_KNOWN", {name: family(name) for name in FAMILIES})


def test_pictures_videos_and_text_alone_have_a_family_each() -> None:
    assert (FAMILIES, IMAGE_FAMILIES, VIDEO_FAMILIES) == (
        ("llava", "qwen3_vl", "llama"),
        ("llava", "qwen3_vl"),
        ("qwen3_vl",),
    )


@pytest.mark.usefixtures("shipped")
def test_a_family_that_is_not_there_is_named_beside_those_that_are() -> None:
    with pytest.raises(ValueError, match="unknown family 'mllama'; choose one of llava, qwen3_vl"):
        tiny_model("mllama")


@pytest.mark.usefixtures("shipped")
def test_a_family_that_is_registered_is_built_like_any_other() -> None:
    known.register(Family("mine", family("llama").build, pictures=False))
    assert type(tiny_model("mine")[0]).__name__ == "LlamaForCausalLM"
    with pytest.raises(ValueError, match="choose one of llava, qwen3_vl, llama, mine"):
        family("gpt9")
