"""The short cut for prompts that begin alike gives the same residuals, or is not taken."""

from __future__ import annotations

import pytest
import torch

from guardrail.decide.reading import TokenReading
from guardrail.model.encode import Encoded, Encoder
from guardrail.model.generate import last_residuals
from guardrail.model.load import wrap_model
from guardrail.model.prefix import SharedPrefix
from guardrail.testing import tiny_model
from guardrail.types import Message, Request, TextPart

SYSTEM = "You are a calm and careful assistant. Be short, be kind and be clear. "


def chats(*texts: str, role: str = "user") -> list[Request]:
    return [Request((Message(role=role, parts=(TextPart(text),)),)) for text in texts]


def counting(model):
    """How many positions each forward pass of the decoder covers."""
    seen: list[int] = []

    handle = (
        model.get_decoder()
        .layers[0]
        .register_forward_pre_hook(
            lambda _m, args, kwargs: seen.append(
                (args[0] if args else kwargs["hidden_states"]).shape[1]
            ),
            with_kwargs=True,
        )
    )
    return seen, handle


def read(prefix: SharedPrefix, encoded: Encoded) -> torch.Tensor:
    """Residuals of the last positions, without any other reading."""
    return prefix.residuals(encoded, lambda _prompt_len: None)[0]


@pytest.fixture
def loaded():
    model, tokenizer = tiny_model("llama")
    tokenizer.chat_template = SYSTEM + tokenizer.chat_template
    return wrap_model(model, tokenizer)


def test_residuals_behind_a_shared_start_equal_those_of_the_whole_prompt(loaded):
    encoder = Encoder(loaded)
    prefix = SharedPrefix(loaded, encoder)
    read(prefix, encoder.encode(chats("What is this?", "Tell me a story about a boat.")))
    later = encoder.encode(chats("No.", "Where does the river end, and who lives there?", "Why?"))
    seen, handle = counting(loaded.model)
    quick = read(prefix, later)
    handle.remove()
    assert max(seen) < later.prompt_len  # the start was not run again
    torch.testing.assert_close(quick, last_residuals(loaded, later), atol=1e-5, rtol=1e-4)


def test_prompts_with_another_start_are_read_whole(loaded):
    encoder = Encoder(loaded)
    prefix = SharedPrefix(loaded, encoder)
    read(prefix, encoder.encode(chats("What is this?", "Tell me a story.")))
    other = encoder.encode(chats("What is this?", "Tell me a story.", role="system"))
    torch.testing.assert_close(read(prefix, other), last_residuals(loaded, other))


def test_a_model_whose_residuals_change_behind_a_cached_start_is_read_whole(loaded, monkeypatch):
    encoder = Encoder(loaded)
    prefix = SharedPrefix(loaded, encoder)
    real = prefix._tail
    monkeypatch.setattr(prefix, "_tail", lambda *args: (real(*args)[0] * 1.01, None))
    batch = encoder.encode(chats("What is this?", "Tell me a story."))
    plain = last_residuals(loaded, batch)
    torch.testing.assert_close(read(prefix, batch), plain)
    torch.testing.assert_close(read(prefix, batch), plain)  # and stays so


def test_a_model_with_more_inputs_than_tokens_is_read_whole():
    loaded = wrap_model(*tiny_model("qwen2_5_vl"))
    encoder = Encoder(loaded)
    prefix = SharedPrefix(loaded, encoder)
    for _ in range(2):
        batch = encoder.encode(chats("What is this?", "Tell me a story."))
        torch.testing.assert_close(read(prefix, batch), last_residuals(loaded, batch))


def test_earlier_turns_that_some_prompts_share_are_run_once_for_those(loaded):
    def after(*texts: str) -> list[Request]:
        (asked,), (said,) = chats("Tell me about cats."), chats("Cats sleep.", role="assistant")
        turns = (*asked.messages, *said.messages)
        return [Request((*turns, *one.messages)) for one in chats(*texts)]

    encoder = Encoder(loaded)
    prefix = SharedPrefix(loaded, encoder, alike=after("No.", "Why?", "And dogs?"), layers=(1, 3))
    read(prefix, encoder.encode(after("No.", "Why?")))
    later = encoder.encode(after("Where do they sleep?", "How long?"))
    seen, handle = counting(loaded.model)
    quick = read(prefix, later)
    handle.remove()
    assert max(seen) < later.prompt_len - len(loaded.tokenizer.encode("Tell me about cats."))
    torch.testing.assert_close(quick, last_residuals(loaded, later, (1, 3)), atol=1e-5, rtol=1e-4)
    other = encoder.encode(chats("Where do they sleep?"))  # begins otherwise: read whole
    torch.testing.assert_close(read(prefix, other), last_residuals(loaded, other, (1, 3)))


def test_tokens_and_earlier_answers_behind_a_shared_start_are_those_of_the_whole_prompt(loaded):
    def turns(*texts: str) -> Request:
        roles = ("user", "assistant", "user")
        said = zip(roles, texts, strict=False)
        return Request(tuple(Message(role=r, parts=(TextPart(text),)) for r, text in said))

    encoder = Encoder(loaded)
    batch = encoder.encode(
        [turns("Why?"), turns("Where do they sleep?", "In a box.", "All day? And who feeds them?")]
    )

    def reading(prompt_len: int) -> TokenReading:
        return TokenReading(
            rows=batch.parts,
            judged=("user",),
            prompt_len=prompt_len,
            layers=(1, 3),
            token_layers=(3,),
        )

    prefix = SharedPrefix(loaded, encoder)
    read(prefix, encoder.encode(chats("What is this?", "Tell me a story about a boat.")))
    seen, handle = counting(loaded.model)
    last, quick = prefix.residuals(batch, reading)
    handle.remove()
    assert max(seen) < batch.prompt_len
    whole = reading(batch.prompt_len)
    expected = last_residuals(loaded, batch, reading=whole)
    torch.testing.assert_close(last, expected, atol=1e-5, rtol=1e-4)
    for layer in (1, 3):
        torch.testing.assert_close(quick.heads[layer], whole.heads[layer], atol=1e-5, rtol=1e-4)
    assert [len(tokens) for tokens in whole.tokens[3]] == [
        turn.stop - turn.start for _, turn in whole.spans()
    ]
    assert len(whole.tokens[3]) == 3
    torch.testing.assert_close(quick.tokens[3], whole.tokens[3], atol=1e-2, rtol=1e-2)
