"""Static caches and compiled decoding: the same answers, or an error; never an unguarded one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import CompileConfig

from guardrail.errors import DetectorError
from guardrail.model.decoder import decoder_layers
from guardrail.model.encode import Encoder
from guardrail.model.generate import RowControl, check_rows, generate_rows
from guardrail.model.settings import Settings
from guardrail.policy import Policy
from guardrail.testing import tiny_model
from guardrail.types import Action, Message, Request, TextPart

PASS, STEER, FLAG = Action.PASS, Action.STEER, Action.FLAG
SIX = Settings(max_new_tokens=6)
POLICY = Policy()
EARLY = {"layers": (2, 3), "steering_layer": 1}
EVERY = pytest.mark.parametrize("where", [{}, EARLY], ids=["at the readout", "before it"])


class Counts:
    """How many graphs were compiled with `backend`, and how often they ran."""

    def __init__(self) -> None:
        self.compiled = self.ran = 0

    @property
    def backend(self) -> Any:
        """A function, which a generation config that is copied shares with its copies."""

        def compile_graph(graph: Any, _inputs: Any) -> Any:
            self.compiled += 1

            def run(*args: Any) -> Any:
                self.ran += 1
                return graph.forward(*args)

            return run

        return compile_graph


@pytest.fixture
def compiling(loaded_of, llama):
    """A llama whose decoding transformers compiles by itself, and how often."""
    torch.compiler.reset()
    model, processor = tiny_model("llama")
    counts = Counts()
    config = CompileConfig(backend=counts.backend, mode=None, fullgraph=True)
    config._compile_all_devices = True
    model.generation_config.cache_implementation = "static"
    model.generation_config.compile_config = config
    yield loaded_of(llama._replace(model=model, processor=processor)), counts
    torch.compiler.reset()


@pytest.fixture
def encoded(llama, loaded_of):
    texts = ("hello", "tell me about the cat and the dog in this picture")
    requests = [Request((Message(role="user", parts=(TextPart(text),)),)) for text in texts]
    return Encoder(loaded_of(llama)).encode(requests)


def tokens(outcomes: Any) -> list[tuple[int, ...]]:
    return [outcome.token_ids for outcome in outcomes]


@pytest.fixture
def would_compile(compiling, monkeypatch):
    """The same llama, whose steps only say that they would be compiled."""
    loaded, _ = compiling
    asked: list[object] = []

    def plain_call(config: object) -> Any:
        asked.append(config)
        return loaded.model.__call__

    monkeypatch.setattr(loaded.model, "get_compiled_call", plain_call)
    return loaded, asked


@pytest.mark.parametrize(("wanted", "where"), [([PASS, STEER], {}), ([STEER, FLAG], EARLY)])
def test_compiled_decoding_gives_the_tokens_of_plain_decoding_and_one_decision(
    compiling, llama, loaded_of, encoded, fake, wanted, where
):
    compiled, counts = compiling
    usual, special = fake(wanted, **where), fake(wanted, **where)
    expected = generate_rows(loaded_of(llama), encoded, usual, SIX, policy=POLICY)
    outcomes = generate_rows(compiled, encoded, special, SIX, policy=POLICY)
    assert tokens(outcomes) == tokens(expected)
    assert [o.ruling.action for o in outcomes] == wanted
    assert len(special.seen) == 1
    assert torch.allclose(special.seen[0], usual.seen[0], atol=1e-4)
    assert counts.compiled == 1
    assert counts.ran == 5  # every token but the first, which the prefill gives


@pytest.mark.parametrize(
    ("policy", "steer_tokens", "compiles"),
    [
        (POLICY, 0, True),
        (POLICY, 2, False),
        (Policy(mode="shadow"), 2, True),
        (Policy(actions=frozenset({FLAG})), 2, True),
    ],
    ids=["prompt only", "tokens too", "shadow", "steering not allowed"],
)
@EVERY
def test_decoding_is_compiled_unless_generated_tokens_may_be_edited(
    would_compile, llama, loaded_of, encoded, fake, policy, steer_tokens, compiles, where
):
    compiled, asked = would_compile
    plain, detector = (fake([PASS, STEER], steer_tokens=steer_tokens, **where) for _ in range(2))
    expected = generate_rows(loaded_of(llama), encoded, plain, SIX, policy=policy)
    outcomes = generate_rows(compiled, encoded, detector, SIX, policy=policy)
    assert tokens(outcomes) == tokens(expected)
    assert len(asked) == compiles


def test_plain_answers_are_compiled_too(would_compile, encoded):
    compiled, asked = would_compile
    generate_rows(compiled, encoded, None, SIX)
    assert len(asked) == 1


def test_a_model_that_asks_not_to_be_compiled_is_not(compiling, encoded, fake):
    compiled, counts = compiling
    compiled.model.generation_config.disable_compile = True
    generate_rows(compiled, encoded, fake([PASS, PASS]), SIX, policy=POLICY)
    assert counts.compiled == 0


def test_a_prompt_in_chunks_is_not_compiled_for_its_hooks_must_run(compiling, encoded, fake):
    """Transformers would compile the chunks."""
    compiled, counts = compiling
    compiled.model.generation_config.prefill_chunk_size = 5
    detector = fake([PASS, STEER])
    outcomes = generate_rows(compiled, encoded, detector, SIX, policy=POLICY)
    assert [o.ruling.action for o in outcomes] == [PASS, STEER]
    assert counts.compiled == 0


def test_hooks_of_a_second_guard_do_not_disturb_a_compiled_graph(compiling, encoded, fake):
    compiled, counts = compiling
    first = generate_rows(compiled, encoded, fake([PASS, PASS]), SIX, policy=POLICY)
    again = generate_rows(compiled, encoded, fake([PASS, STEER]), SIX, policy=POLICY)
    assert tokens(again)[0] == tokens(first)[0]
    assert tokens(again)[1] != tokens(first)[1]
    assert counts.ran == 10


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen2_5_vl", "gemma2"])
@pytest.mark.parametrize("steer_tokens", [0, 2])
@EVERY
def test_a_static_cache_changes_neither_verdict_nor_tokens(
    family, steer_tokens, where, tiny_of, loaded_of, two, fake, monkeypatch
):
    loaded = loaded_of(tiny_of(family))
    batch = two(loaded)
    usual, special = (fake([STEER, PASS], steer_tokens=steer_tokens, **where) for _ in range(2))
    expected = generate_rows(loaded, batch, usual, SIX, policy=POLICY)
    monkeypatch.setattr(loaded.model.generation_config, "cache_implementation", "static")
    outcomes = generate_rows(loaded, batch, special, SIX, policy=POLICY)
    assert tokens(outcomes) == tokens(expected)
    assert [o.ruling.action for o in outcomes] == [STEER, PASS]
    assert torch.allclose(special.seen[0], usual.seen[0], atol=1e-4)
    assert [r.action for r in check_rows(loaded, batch, special, policy=POLICY)] == [STEER, PASS]


@pytest.mark.parametrize(
    ("what", "where"),
    [
        pytest.param(what, where, id=f"{what} {name}", marks=pytest.mark.slow if later else ())
        for what, where, name, later in (
            ("model", {}, "at the readout", False),
            ("model", EARLY, "before it", True),
            ("readout layer", {}, "at the readout", True),
            ("readout layer", EARLY, "before it", False),
            ("all layers", {}, "at the readout", True),
            ("all layers", EARLY, "before it", True),
        )
    ],
)
def test_a_model_compiled_as_a_whole_fails_closed_and_says_why(
    what, where, llama, loaded_of, encoded, fake
):
    model, processor = tiny_model("llama")
    loaded = loaded_of(llama._replace(model=model, processor=processor))
    layers, seen = decoder_layers(model), []
    if what == "model":
        model.forward = torch.compile(model.forward, backend="eager")
    for number, layer in enumerate(layers):
        if what == "all layers" or (
            what == "readout layer" and number == where.get("layers", [2])[-1]
        ):
            layer.compile(backend="eager")
    detector = fake([STEER, FLAG], **({"layers": (1, 2)} | where))
    controls = [RowControl(on_token=lambda token: bool(seen.append(token))) for _ in range(2)]
    for policy in (Policy(fail="open"), POLICY):
        with pytest.raises(DetectorError, match=r"never saw .* compiled .* plain model"):
            generate_rows(loaded, encoded, detector, SIX, controls, policy=policy)
    assert seen == []
    torch.compiler.reset()
