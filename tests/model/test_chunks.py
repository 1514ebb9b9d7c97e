"""Prompts in chunks: exact, or refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from guardrail.errors import UnsupportedModelError
from guardrail.model.chunks import require_exact_chunks
from guardrail.model.decoder import decoder_layers
from guardrail.model.encode import Encoder
from guardrail.model.generate import check_rows, generate_rows, last_residuals
from guardrail.model.settings import Settings
from guardrail.policy import Policy
from guardrail.testing import family, tiny_model
from guardrail.types import Action, ImagePart, Message, Request, TextPart
from tests.conftest import CORE_FAMILIES
from tests.families.catalogue import FAMILIES

PASS, STEER, FLAG = Action.PASS, Action.STEER, Action.FLAG
FOUR = Settings(max_new_tokens=4)
POLICY = Policy()
CHUNK = 5
GUARDED = [name for name in FAMILIES if not family(name).own_generate]
TWO_WAYS = {("gemma3", True), ("molmo2", True), ("paligemma", True)}
WHOLE_PICTURES = {("mllama", True), ("ovis2", True)}
# Transformers 5.24 loses a part of their pictures as soon as a size of chunks is set.
NOT_EVEN_IN_ONE_CHUNK = {"ovis2"}
# Those that are refused something, one with states, and the rest of the core for what is exact.
CORE = {*CORE_FAMILIES, "qwen3_5", *(name for name, _ in TWO_WAYS | WHOLE_PICTURES)}
CASES = [
    pytest.param(
        name,
        pictures,
        id=f"{name} {'with' if pictures else 'without'} pictures",
        marks=() if name in CORE else pytest.mark.families,
    )
    for name in GUARDED
    for pictures in (True, False)
    if (family(name).pictures or not pictures) and (family(name).text_alone or pictures)
]


def encode(loaded: Any, picture: Any, pictures: bool) -> Any:
    requests = []
    for seed, text in enumerate(("hello", "tell me about the cat and the dog in this picture")):
        parts = [ImagePart(picture(seed))] if pictures else []
        requests.append(Request((Message(role="user", parts=(*parts, TextPart(text))),)))
    return Encoder(loaded).encode(requests)


@pytest.fixture
def chunked(monkeypatch):
    def set_size(model: Any, size: int = CHUNK) -> None:
        monkeypatch.setattr(model.generation_config, "prefill_chunk_size", size)

    return set_size


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(("name", "pictures"), CASES)
def test_chunks_change_no_score_and_no_token_or_are_refused(
    name, pictures, tiny_of, loaded_of, picture, fake, chunked
):
    loaded = loaded_of(tiny_of(name))
    encoded = encode(loaded, picture, pictures)
    usual, special, checked = (
        fake([PASS, STEER], layers=(2, 3), steering_layer=3) for _ in range(3)
    )
    expected = generate_rows(loaded, encoded, usual, FOUR, policy=POLICY)
    chunked(loaded.model)
    if (name, pictures) in TWO_WAYS | WHOLE_PICTURES:
        with pytest.raises(UnsupportedModelError, match=r"prefill_chunk_size=5.*unset it"):
            generate_rows(loaded, encoded, special, FOUR, policy=POLICY)
        assert special.seen == []
    else:
        outcomes = generate_rows(loaded, encoded, special, FOUR, policy=POLICY)
        assert [o.token_ids for o in outcomes] == [o.token_ids for o in expected]
        assert torch.allclose(special.seen[0], usual.seen[0], atol=1e-4)
    if name in NOT_EVEN_IN_ONE_CHUNK:
        return
    check_rows(loaded, encoded, checked, policy=POLICY)  # read as a whole, so never refused
    assert torch.allclose(checked.seen[0], usual.seen[0], atol=1e-4)


@pytest.mark.parametrize("name", ["gemma3", "mllama"])
def test_a_picture_that_fits_into_one_chunk_is_read_as_ever(
    name, tiny_of, loaded_of, picture, fake, chunked
):
    loaded = loaded_of(tiny_of(name))
    encoded = encode(loaded, picture, pictures=True)
    usual, special = (fake([PASS, FLAG], layers=(2,), steering_layer=None) for _ in range(2))
    expected = generate_rows(loaded, encoded, usual, FOUR, policy=POLICY)
    chunked(loaded.model, encoded.prompt_len)
    outcomes = generate_rows(loaded, encoded, special, FOUR, policy=POLICY)
    assert [o.token_ids for o in outcomes] == [o.token_ids for o in expected]


def test_gemma4_is_refused_where_its_config_makes_pictures_two_way(
    loaded_of, llama, picture, fake, chunked
):
    model, processor = tiny_model("gemma4")
    loaded = loaded_of(llama._replace(model=model, processor=processor))
    encoded = encode(loaded, picture, pictures=True)
    chunked(model)
    generate_rows(loaded, encoded, fake([PASS, PASS]), FOUR, policy=POLICY)
    model.config.text_config.use_bidirectional_attention = "vision"
    with pytest.raises(UnsupportedModelError, match="see later ones"):
        generate_rows(loaded, encoded, fake([PASS, PASS]), FOUR, policy=POLICY)
    generate_rows(
        loaded, encode(loaded, picture, pictures=False), fake([PASS, PASS]), FOUR, policy=POLICY
    )


def test_a_model_that_forgets_between_chunks_is_refused(llama, loaded_of, picture, fake, chunked):
    """Nothing in its config says so: the first batch is read both ways."""
    model, processor = tiny_model("llama")
    loaded = loaded_of(llama._replace(model=model, processor=processor))
    encoded = encode(loaded, picture, pictures=False)

    def average(_module: Any, args: Any) -> Any:
        return (args[0] + args[0].mean(1, keepdim=True), *args[1:])

    decoder_layers(model)[1].register_forward_pre_hook(average)
    chunked(model)
    with pytest.raises(UnsupportedModelError, match="come out differently in chunks"):
        generate_rows(loaded, encoded, fake([PASS, PASS]), FOUR, policy=POLICY)


def test_a_model_that_fails_in_chunks_is_refused_and_says_how(
    llama, loaded_of, picture, fake, chunked
):
    model, processor = tiny_model("llama")
    loaded = loaded_of(llama._replace(model=model, processor=processor))

    def fail(_module: Any, args: Any) -> None:
        if args[0].shape[1] == CHUNK:
            raise TypeError("no picture here")

    decoder_layers(model)[1].register_forward_pre_hook(fail)
    chunked(model)
    with pytest.raises(UnsupportedModelError, match=r"chunks: TypeError: no picture here.*unset"):
        generate_rows(
            loaded, encode(loaded, picture, pictures=False), fake([PASS, PASS]), FOUR, policy=POLICY
        )


def test_only_the_first_batch_of_a_kind_is_read_both_ways(llama, loaded_of, picture):
    loaded = loaded_of(llama)
    encoded = encode(loaded, picture, pictures=False)
    model, _ = tiny_model("llama")
    loaded = loaded_of(llama._replace(model=model))
    asked: list[int | None] = []

    def read(size: int | None) -> torch.Tensor:
        asked.append(size)
        return last_residuals(loaded, encoded)

    for _ in range(2):
        require_exact_chunks(loaded, encoded, 4, read)
    assert asked == [4, None]
    require_exact_chunks(loaded, encoded, 6, read)
    require_exact_chunks(loaded, encoded, encoded.prompt_len, read)  # one chunk: nothing to prove
    assert asked == [4, None, 6, None]


@pytest.mark.parametrize("change", ["kinds", "lengths", "attention", "cache"])
def test_what_was_proven_of_one_sort_of_batch_is_not_taken_for_proven_of_another(
    change, llama, loaded_of, picture, monkeypatch
):
    """A video may go another way through a model than a picture, and padding than none."""
    model, _ = tiny_model("llama")
    loaded = loaded_of(llama._replace(model=model))
    encoded = replace(encode(loaded, picture, pictures=False), kinds=("image", "image"))
    asked: list[int | None] = []

    def read(size: int | None) -> torch.Tensor:
        asked.append(size)
        return torch.ones(2, 1, 4)

    require_exact_chunks(loaded, encoded, 4, read)
    if change == "kinds":
        encoded = replace(encoded, kinds=("image", "video"))
    if change == "lengths":
        encoded = replace(encoded, lengths=(encoded.prompt_len,) * 2)
    if change == "attention":
        model.set_attn_implementation("eager")
    if change == "cache":
        monkeypatch.setattr(model.generation_config, "cache_implementation", "static")
    require_exact_chunks(loaded, encoded, 4, read)
    assert asked == [4, None, 4, None]


def test_a_prompt_in_chunks_without_a_cache_is_refused(llama, loaded_of, picture, chunked):
    model, processor = tiny_model("llama")
    loaded = loaded_of(llama._replace(model=model, processor=processor))
    chunked(model)
    model.generation_config.use_cache = False
    with pytest.raises(UnsupportedModelError, match="chunks need a cache"):
        generate_rows(loaded, encode(loaded, picture, pictures=False), None, FOUR)
