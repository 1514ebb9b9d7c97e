"""Every tiny family runs from messages, and everything in a message reaches the last position."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import AutoProcessor, AutoTokenizer

from guardrail.errors import UnsupportedModelError
from guardrail.guard import Guard
from guardrail.model.decoder import decoder_layers
from guardrail.testing import family, tiny_artefact, tiny_model, tiny_processor
from tests.families.catalogue import FAMILIES, IMAGE_FAMILIES, VIDEO_FAMILIES

GUARDED = [name for name in FAMILIES if not family(name).own_generate]
GUARDED_IMAGE = [name for name in GUARDED if family(name).pictures]
OWN = [name for name in FAMILIES if family(name).own_generate]
TOOL = {
    "type": "function",
    "function": {"name": "weather", "description": "", "parameters": {"type": "object"}},
}


@pytest.fixture
def base(picture: Any) -> Any:
    """What a request must hold at least: a picture, where the processor takes none without."""

    def make(name: str) -> list[Any]:
        return [] if family(name).text_alone else [picture(9)]

    return make


def apart(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Relative distance after each layer but the embedding, of the first row."""
    return ((one - other).norm(dim=-1) / one.norm(dim=-1))[1:, 0]


def test_the_lists_agree_with_what_each_family_says_of_itself() -> None:
    assert len(set(FAMILIES)) == len(FAMILIES)
    assert set(IMAGE_FAMILIES) == {name for name in FAMILIES if family(name).pictures}
    assert set(VIDEO_FAMILIES) == {name for name in FAMILIES if family(name).video}
    assert all(family(name).name == name for name in FAMILIES)
    with pytest.raises(ValueError, match=r"unknown family 'gpt9'.*llava.*mllama"):
        family("gpt9")


@pytest.mark.parametrize("name", FAMILIES)
def test_answers_run_to_the_limit_and_vary(
    tiny_of: Any, encode: Any, user: Any, base: Any, name: str
) -> None:
    tiny = tiny_of(name)
    inputs = encode(tiny, user(name, "what is this?", *base(name)))
    output = tiny.model.generate(**inputs, max_new_tokens=12)
    answer = output[0, -12:].tolist()
    assert output.shape[1] == inputs["input_ids"].shape[1] + 12
    assert len(set(answer)) > 3
    assert not set(answer) & set(tiny.tokenizer.all_special_ids)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_decoder_has_four_layers_of_width_32(tiny_of: Any, name: str) -> None:
    model = tiny_of(name).model
    text = model.config.get_text_config(decoder=True)
    assert (len(decoder_layers(model)), text.hidden_size) == (4, 32)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not model.training


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_position_depends_on_the_words(
    tiny_of: Any, encode: Any, user: Any, last: Any, base: Any, name: str
) -> None:
    tiny = tiny_of(name)
    one, other = (
        last(tiny, encode(tiny, user(name, text, *base(name))))
        for text in ("tell me about the cat", "how do I make red?")
    )
    if name == "mllama":  # reports no state for the layer that it skips without a picture
        assert (apart(one, other) > 0.02).all()
    else:
        assert one.shape == (5, 1, 32)
        assert (apart(one, other)[1:] > 0.02).all()


@pytest.mark.parametrize("name", IMAGE_FAMILIES)
def test_the_last_position_depends_on_the_picture(
    tiny_of: Any, encode: Any, user: Any, last: Any, picture: Any, name: str
) -> None:
    tiny = tiny_of(name)
    one, other = (
        last(tiny, encode(tiny, user(name, "what is this?", picture(seed)))) for seed in (1, 2)
    )
    assert (apart(one, other)[1:] > 0.02).all()


@pytest.mark.parametrize("name", GUARDED_IMAGE)
def test_each_of_two_pictures_of_unequal_sizes_counts(
    tiny_of: Any, encode: Any, user: Any, last: Any, picture: Any, name: str
) -> None:
    tiny = tiny_of(name)

    def ask(first: int, second: int) -> torch.Tensor:
        media = picture(first, width=28, height=28), picture(second, width=90, height=40)
        return last(tiny, encode(tiny, user(name, "and these?", *media)))

    states = ask(1, 2)
    assert (apart(states, ask(3, 2))[1:] > 1e-3).all()
    assert (apart(states, ask(1, 3))[1:] > 1e-3).all()


@pytest.mark.parametrize("name", [*GUARDED, "blip2"])  # InstructBLIP's queries see the padding
def test_a_row_in_a_padded_batch_is_the_row_alone(
    tiny_of: Any, encode: Any, user: Any, last: Any, picture: Any, name: str
) -> None:
    tiny, kind = tiny_of(name), family(name)
    large, small = picture(1, width=90, height=40), picture(2, width=28, height=28)
    media: list[list[Any]] = [[], [], []]
    if kind.pictures:
        media = [[small], [large], [picture(3)]]
    if kind.mixed_batch:
        media = [[], [large], [picture(3), small]]
    texts = "hi", "what is this? please tell me about it", "a cat and a dog"
    chats = [user(name, text, *parts) for text, parts in zip(texts, media, strict=True)]
    inputs = encode(tiny, *chats)
    assert (inputs["attention_mask"][:, -1] == 1).all()
    assert (inputs["attention_mask"].sum(dim=1).unique().numel()) > 1
    together = last(tiny, inputs)
    alone = torch.cat([last(tiny, encode(tiny, chat)) for chat in chats], dim=1)
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_templates_write_systems_turns_and_tools_in_order(
    tiny_of: Any, encode: Any, user: Any, base: Any, name: str
) -> None:
    tiny = tiny_of(name)
    chat = [
        {"role": "system", "content": "be kind"},
        *user(name, "first", *base(name)),
        {"role": "assistant", "content": "second"},
        *user(name, "third"),
    ]
    shown = tiny.tokenizer.decode(encode(tiny, chat, tools=[TOOL])["input_ids"][0])
    words = ["weather", "system\nbe kind", "user\n", "first", "assistant\nsecond", "user\nthird"]
    places = [shown.index(word) for word in words]
    assert places == sorted(places)
    assert shown.rstrip("\n").endswith("<|im_start|>assistant")


@pytest.mark.parametrize("name", FAMILIES)
def test_a_seed_gives_the_same_weights_and_leaves_the_random_state_alone(name: str) -> None:
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)
    one, again, other = (tiny_model(name, seed=s)[0].state_dict() for s in (3, 3, 4))
    assert torch.equal(torch.rand(3), wanted)
    assert all(torch.equal(one[key], again[key]) for key in one)
    matrices = [key for key in one if one[key].dim() >= 2]
    assert not any(torch.equal(one[key], other[key]) for key in matrices)


@pytest.mark.parametrize("name", GUARDED)
def test_a_saved_processor_comes_back_and_encodes_alike(
    tiny_of: Any, encode: Any, user: Any, picture: Any, tmp_path: Any, name: str
) -> None:
    tiny, auto = tiny_of(name), AutoProcessor if family(name).pictures else AutoTokenizer
    processor = tiny_processor(name)
    processor.save_pretrained(tmp_path)
    tiny.model.config.save_pretrained(tmp_path)
    again = auto.from_pretrained(tmp_path)
    assert type(again) is type(processor)
    media = [picture(1), picture(2, width=90)] if family(name).pictures else []
    chat = user(name, "naïve cats' tails: 10 % off", *media)
    one, other = encode(tiny, chat), encode(tiny._replace(processor=again), chat)
    assert one.keys() == other.keys()
    for key in one:
        torch.testing.assert_close(one[key], other[key], rtol=0, atol=0, msg=key)


@pytest.mark.parametrize("name", OWN)
def test_models_with_a_generate_of_their_own_are_refused(
    tiny_of: Any, user: Any, picture: Any, name: str
) -> None:
    _, model, processor = tiny_of(name)
    with (
        Guard((model, processor), tiny_artefact(model, processor)) as guard,
        pytest.raises(UnsupportedModelError, match=r"own generate\(\)"),
    ):
        guard.generate(user(name, "what is this?", picture(1)), max_new_tokens=2)
