"""Residuals of many prompts: right, in order, and read once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

from guardrail.fit.collect import Collector, text_request
from guardrail.fit.prompts import clip_request, meaningless_clips
from guardrail.model.decoder import decoder_layers
from guardrail.types import Message, Request, TextPart

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from guardrail.model.load import LoadedModel

TEXTS = (
    "tell me about the cat and the dog in this picture, please",
    "hello",
    "what is red?",
    "how do I make a blue dog",
    "write about the assistant and the user of the system",
    "a",
    "describe the green image",
)


@pytest.fixture
def forwards(llama_loaded: LoadedModel) -> Iterator[list[int]]:
    """The number of rows of each forward pass of the shared text model.

    A new collector first asks with one row which layers run at every position.
    """
    seen: list[int] = []
    layer: Any = decoder_layers(llama_loaded.model)[0]
    handle = layer.register_forward_pre_hook(lambda _module, args: seen.append(len(args[0])))
    yield seen
    handle.remove()


@pytest.fixture(scope="module")
def requests() -> list[Request]:
    return [text_request(text) for text in TEXTS]


@torch.no_grad()
def alone(loaded: LoadedModel, text: str, image: Any = None) -> torch.Tensor:
    """Slow reference: (L - 1, d_model), all layers but the last, of one request."""
    content: Any = text
    if loaded.is_multimodal:
        pictures = [] if image is None else [{"type": "image", "image": image}]
        content = [*pictures, {"type": "text", "text": text}]
    processor: Any = loaded.processor
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
    )
    model: Any = loaded.model
    states = model(**inputs, output_hidden_states=True).hidden_states
    return torch.stack([state[0, -1] for state in states[1:-1]])  # the last one is normalised


def test_residuals_are_those_of_each_request_alone_in_their_order(
    llama_loaded: LoadedModel, requests: list[Request]
) -> None:
    found = Collector(llama_loaded, batch_size=3)(requests, "reading")
    assert found.shape == (7, 4, 32)
    assert found.dtype == torch.float32
    expected = torch.stack([alone(llama_loaded, text) for text in TEXTS])
    torch.testing.assert_close(found[:, :-1], expected, atol=1e-5, rtol=1e-4)


def test_pictures_and_texts_can_be_mixed(llava_loaded: LoadedModel, picture: Any) -> None:
    images = [None, picture(1), None, picture(2)]
    mixed = [
        text_request(text, images=[] if image is None else [image])
        for text, image in zip(TEXTS, images, strict=False)
    ]
    found = Collector(llava_loaded, batch_size=2)(mixed, "reading")
    expected = torch.stack([alone(llava_loaded, t, i) for t, i in zip(TEXTS, images, strict=False)])
    torch.testing.assert_close(found[:, :-1], expected, atol=1e-5, rtol=1e-4)


def test_the_batch_size_does_not_change_what_is_read(
    llama_loaded: LoadedModel, requests: list[Request]
) -> None:
    one, five = (Collector(llama_loaded, batch_size=n)(requests, "reading") for n in (1, 5))
    torch.testing.assert_close(one, five, atol=1e-5, rtol=1e-5, equal_nan=True)


def test_batches_hold_requests_of_like_length_and_equal_pictures(
    llava_loaded: LoadedModel, picture: Any
) -> None:
    texts = ["x" * n for n in (9, 1, 5, 3, 7, 2, 8)]
    mixed = [text_request(t, images=[picture()] * (i % 2)) for i, t in enumerate(texts)]
    batches = list(Collector(llava_loaded, batch_size=2).batches(mixed))
    assert sorted(i for batch in batches for i in batch) == list(range(7))
    lengths = [[len(texts[i]) for i in batch] for batch in batches]
    assert lengths == [[5, 7], [8, 9], [1, 2], [3]]
    assert all(len({i % 2 for i in batch}) == 1 for batch in batches)


def test_a_batch_of_videos_holds_no_more_frames_than_it_would_pictures(
    llava_loaded: LoadedModel,
) -> None:
    eight, two = (meaningless_clips(1, frames=n)[0] for n in (8, 2))
    requests = [clip_request("what", clip) for clip in (eight, two) for _ in range(5)]
    requests.append(text_request("what"))
    batches = list(Collector(llava_loaded, batch_size=5).batches(requests))
    assert [len(batch) for batch in batches] == [1, 1, 1, 1, 1, 2, 2, 1, 1]
    assert [len(b) for b in Collector(llava_loaded, batch_size=16).batches(requests[:5])] == [
        2,
        2,
        1,
    ]


def test_requests_with_a_system_prompt_are_in_batches_of_their_own(
    llama_loaded: LoadedModel,
) -> None:
    """What prompts begin with is run once only where a whole batch begins with it."""
    asked = [text_request(f"{'a ' * n}") for n in range(1, 7)]
    ruled = [
        Request((Message(role="system", parts=(TextPart("b"),)), *one.messages)) for one in asked
    ]
    mixed = [request for pair in zip(asked, ruled, strict=True) for request in pair]
    batches = list(Collector(llama_loaded, batch_size=4).batches(mixed))
    assert sorted(i for batch in batches for i in batch) == list(range(12))
    assert all(len({i % 2 for i in batch}) == 1 for batch in batches)


def test_a_tokenizer_that_cannot_pad_gets_batches_of_one(
    llama_loaded: LoadedModel, requests: list[Request], monkeypatch: Any
) -> None:
    collect = Collector(llama_loaded, batch_size=4)
    monkeypatch.setattr(type(collect.encoder), "can_batch", False)
    assert [len(batch) for batch in collect.batches(requests)] == [1] * 7


@pytest.mark.parametrize("size", [0, -1])
def test_an_empty_batch_is_refused(llama_loaded: LoadedModel, size: int) -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        Collector(llama_loaded, batch_size=size)


def test_progress_counts_up_to_the_total(
    llama_loaded: LoadedModel, requests: list[Request]
) -> None:
    seen: list[tuple[str, int, int]] = []
    Collector(llama_loaded, batch_size=3, progress=lambda *at: seen.append(at))(requests, "words")
    assert seen == [("words", 3, 7), ("words", 6, 7), ("words", 7, 7)]


def test_what_was_read_is_not_read_again(
    llama_loaded: LoadedModel, requests: list[Request], forwards: list[int], tmp_path: Path
) -> None:
    work = tmp_path / "deep" / "work"

    def read() -> torch.Tensor:
        return Collector(llama_loaded, batch_size=3, work_dir=work)(requests, "reading")

    first = read()
    assert forwards == [1, 3, 3, 1]
    torch.testing.assert_close(read(), first, atol=0, rtol=0, equal_nan=True)
    assert forwards == [1, 3, 3, 1, 1]
    assert {path.suffix for path in work.iterdir()} == {".part"}


@pytest.mark.parametrize("damage", ["cut", "empty", "noise", "other"])
def test_a_damaged_part_is_read_again_and_mended(
    llama_loaded: LoadedModel, requests: list[Request], forwards: list[int], tmp_path: Path,
    caplog: Any, damage: str,
) -> None:  # fmt: skip
    from safetensors.torch import save_file

    def read() -> torch.Tensor:
        return Collector(llama_loaded, batch_size=3, work_dir=tmp_path)(requests, "reading")

    first = read()
    part = sorted(tmp_path.iterdir())[0]
    whole = part.read_bytes()
    if damage == "other":
        save_file({"something": torch.zeros(1)}, part)
    else:
        part.write_bytes({"cut": whole[:-10], "empty": b"", "noise": b"\xff" * 64}[damage])
    torch.testing.assert_close(read(), first, atol=0, rtol=0, equal_nan=True)
    assert len(forwards) == 4 + 2
    assert "is damaged" in caplog.text
    assert part.read_bytes() == whole


def test_an_interrupted_reading_goes_on_where_it_stopped(
    llama_loaded: LoadedModel, requests: list[Request], forwards: list[int], tmp_path: Path
) -> None:
    def stop(_stage: str, done: int, _total: int) -> None:
        if done >= 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Collector(llama_loaded, batch_size=2, work_dir=tmp_path, progress=stop)(requests, "x")
    assert forwards == [1, 2, 2]
    Collector(llama_loaded, batch_size=2, work_dir=tmp_path)(requests, "x")
    assert forwards == [1, 2, 2, 1, 2, 1]


def test_another_model_or_key_is_read_anew(
    llama_loaded: LoadedModel, requests: list[Request], forwards: list[int], tmp_path: Path
) -> None:
    for key in ("model a", "model b"):
        Collector(llama_loaded, work_dir=tmp_path, key=key)(requests, "reading")
    assert forwards == [1, 7, 1, 7]


def test_every_difference_between_batches_gives_another_digest(llava_loaded: LoadedModel) -> None:
    base = Image.new("RGB", (4, 6), (10, 20, 30))
    dotted = base.copy()
    dotted.putpixel((3, 5), (10, 20, 31))
    turned = Image.new("RGB", (6, 4), (10, 20, 30))

    def chat(*roles: str) -> Request:
        return Request(tuple(Message(role=role, parts=(TextPart("a"),)) for role in roles))

    batches = [
        [text_request("a")],
        [text_request("b")],
        [text_request("a"), text_request("b")],
        [text_request("b"), text_request("a")],
        [text_request("a", images=[base])],
        [text_request("a", images=[dotted])],
        [text_request("a", images=[turned])],
        [text_request("a", images=[base, base])],
        [chat("system")],
        [chat("user", "user")],
        [chat("user"), chat("user")],
    ]
    collect = Collector(llava_loaded)
    digests = [collect._digest(batch) for batch in batches]
    assert len(set(digests)) == len(batches)
    assert [collect._digest(batch) for batch in batches] == digests


def chats(picture: Any) -> list[Request]:
    """Of one turn and of three, with a tool's answer and with pictures, of many lengths."""

    def said(role: str, text: str) -> Message:
        return Message(role=role, parts=(TextPart(text),))

    earlier = (said("user", "tell me about the cat"), said("assistant", "it is red"))
    return [
        text_request("what is this?"),
        Request((*earlier, said("user", "and the dog, please, in this picture?"))),
        Request((said("system", "be blue"), *earlier, said("user", "why"))),
        text_request("describe the green image", images=[picture()]),
        Request((*text_request("look", images=[picture(1)]).messages, *earlier[1:], *earlier[:1])),
    ]


def same(one: Any, other: Any) -> None:
    assert (one.kinds, one.lengths, one.layers) == (other.kinds, other.lengths, other.layers)
    for name in ("last", "headers", "tokens"):
        torch.testing.assert_close(
            getattr(one, name), getattr(other, name), atol=2e-3, rtol=2e-3, equal_nan=True
        )


def test_tokens_and_headers_are_those_of_each_request_alone_and_come_back_from_a_file(
    llava_loaded: LoadedModel, picture: Any, tmp_path: Path
) -> None:
    requests = chats(picture)
    (alone, together), again = (
        [
            Collector(llava_loaded, batch_size=n, work_dir=tmp_path / str(n)).read(requests, "")
            for n in (1, 4)
        ],
        Collector(llava_loaded, batch_size=4, work_dir=tmp_path / "4"),
    )
    for one, batched, kept in zip(alone, together, again.read(requests, ""), strict=True):
        same(one, batched)
        same(batched, kept)
    assert [len(read.headers) for read in alone] == [0, 1, 1, 0, 1]
    assert [len(read.lengths) for read in alone] == [1, 2, 2, 1, 2]  # what users said
    assert [read.kinds for read in alone] == [(), ("text",), ("text",), (), ("image",)]


@torch.no_grad()
def test_tokens_are_those_of_the_users_words_and_pictures(
    llava_loaded: LoadedModel, picture: Any
) -> None:
    collect = Collector(llava_loaded)
    model: Any = llava_loaded.model
    for request in chats(picture):
        (read,) = collect.read([request], "")
        encoded = collect.encoder.encode([request])
        (parts,) = encoded.parts
        states = model(**encoded.inputs, output_hidden_states=True).hidden_states[1:]
        users = [turn for turn in parts.turns if turn.role == "user"]
        assert list(read.lengths) == [turn.stop - turn.start for turn in users]
        for place, layer in enumerate(read.layers):
            if layer + 1 == len(states):
                continue  # the last one is normalised
            wanted = torch.cat([states[layer][0, turn.start : turn.stop] for turn in users])
            torch.testing.assert_close(read.tokens[:, place].float(), wanted, atol=5e-3, rtol=5e-3)
