"""Random weights leave no part of a model switched off."""

from __future__ import annotations

import re
from typing import Any

import pytest

from guardrail.testing import family, tiny_model
from tests.families.catalogue import FAMILIES

_BEHIND = r"vision_tower\.(encoder\.layers\.1|post_layernorm)\."  # what is read lies before them
UNREAD = {
    "llava": _BEHIND,
    "llava_next": _BEHIND,
    "llava_next_video": _BEHIND,
    "llava_onevision": r"vision_tower\.post_layernorm\.",
    "aya_vision": r"vision_tower\.post_layernorm\.",
    "instructblip": r"qformer\.encoder\.layer\.1\.(intermediate|output)\.",  # for the words alone
}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_parameter_that_is_read_moves_the_next_token(
    encode: Any, user: Any, picture: Any, tiny_of: Any, name: str
) -> None:
    tiny = tiny_of(name)._replace(model=tiny_model(name)[0])  # gradients: not the shared one
    media = [picture(1)] if family(name).pictures else []
    inputs = encode(tiny, user(name, "tell me about the cat and the dog, please", *media))
    inputs.pop("labels", None)
    tiny.model(**inputs).logits[0, -1, :100].logsumexp(dim=0).backward()
    idle = {
        key
        for key, parameter in tiny.model.named_parameters()
        if parameter.grad is None or not parameter.grad.abs().max() > 0
    }
    unread = UNREAD.get(name)
    assert {key for key in idle if unread is None or not re.search(unread, key)} == set()
