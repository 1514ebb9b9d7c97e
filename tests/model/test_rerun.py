"""An edit before the readout: decided late, applied as if it had been known from the start."""

from __future__ import annotations

import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import cache_utils

from guardrail.model.decoder import decoder_layers, self_attention_layers
from guardrail.model.encode import Encoder
from guardrail.model.generate import check_rows, generate_rows, next_token_logits
from guardrail.model.hooks import check_layers, prompt_hooks
from guardrail.model.prefill import PromptCall
from guardrail.model.rerun import LayerState
from guardrail.model.settings import Settings
from guardrail.policy import Policy
from guardrail.testing import family, tiny_model
from guardrail.types import Action, Message, Request, TextPart
from tests.families.catalogue import FAMILIES

PASS, STEER, FLAG = Action.PASS, Action.STEER, Action.FLAG

SIX = Settings(max_new_tokens=6)

POLICY = Policy()

GUARDED = [name for name in FAMILIES if not family(name).own_generate]


def early(model: Any, fake: Any, wanted: Any, **options: Any) -> Any:
    """A detector that steers at an early layer and reads the last two that always run."""
    always = self_attention_layers(model)
    return fake(wanted, layers=always[-2:], steering_layer=always[0], **options)


@contextmanager
def edited_from_the_start(model: Any, detector: Any, prompt_len: int):
    """Every pass that sees the whole sequence is edited at the layer, as the detector would."""
    kinds = ["text"] * len(detector.wanted)
    delta = detector.edit(
        detector.decide(torch.zeros(0), kinds), torch.zeros(len(kinds), 32), kinds
    )
    last = prompt_len + detector.steer_tokens

    def edit(_module: Any, _args: Any, output: Any) -> Any:
        hidden = (output[0] if isinstance(output, tuple) else output).clone()
        hidden[:, prompt_len - 1 : last] += delta[:, None]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = decoder_layers(model)[detector.steering_layer].register_forward_hook(edit)
    try:
        yield
    finally:
        handle.remove()


def logits_by_step(model: Any, encoded: Any, **options: Any) -> Any:
    output = model.generate(
        **encoded.inputs,
        max_new_tokens=4,
        do_sample=False,
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    return torch.stack(output.logits), output.sequences[:, encoded.prompt_len :].tolist()


def encode(loaded: Any, ask: Any, picture: Any, *, pictures: bool) -> Any:
    images = [[picture(seed)] if pictures else [] for seed in (0, 1)]
    requests = [
        ask("hello", *images[0]),
        ask("tell me about the cat and the dog in this picture", *images[1]),
    ]
    return Encoder(loaded).encode(requests)


def call_of(encoded: Any, detector: Any) -> PromptCall:
    return PromptCall(
        prompt_len=encoded.prompt_len,
        kinds=encoded.kinds,
        layers=detector.layers,
        detector=detector,
        policy=POLICY,
    )


def tokens(outcomes: Any) -> list[list[int]]:
    return [list(outcome.token_ids) for outcome in outcomes]


CASES = [
    pytest.param(name, pictures, id=f"{name} {'with' if pictures else 'without'} pictures")
    for name in GUARDED
    for pictures in (True, False)
    if (family(name).pictures or not pictures) and (family(name).text_alone or pictures)
]
CORE = ("llava", "qwen2_5_vl", "gemma3", "llama")
SOME = [
    pytest.param(name, marks=() if name in {*CORE, "qwen3_5", "mllama"} else pytest.mark.families)
    for name in GUARDED
]
LONG_AND_SHORT = [
    pytest.param(
        *case.values,
        steer_tokens,
        id=f"{case.id}-{steer_tokens}",
        marks=() if steer_tokens or case.values[0] in CORE else pytest.mark.families,
    )
    for case in CASES
    for steer_tokens in (2, 0)  # an edit of generated tokens, too, is one of the prompt's end
]


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize(("name", "pictures", "steer_tokens"), LONG_AND_SHORT)
def test_logits_are_those_of_an_edit_made_in_a_plain_pass_without_a_cache(
    name, pictures, steer_tokens, tiny_of, loaded_of, ask, picture, fake
):
    loaded = loaded_of(tiny_of(name))
    encoded = encode(loaded, ask, picture, pictures=pictures)
    detector = early(loaded.model, fake, [PASS, STEER], steer_tokens=steer_tokens)
    with edited_from_the_start(loaded.model, detector, encoded.prompt_len):
        expected, wanted = logits_by_step(loaded.model, encoded, use_cache=False)
    plain, _ = logits_by_step(loaded.model, encoded)
    layers = check_layers(detector, loaded.model)
    call = call_of(encoded, detector)
    with prompt_hooks(loaded.model, layers) as hooks, hooks.active(call):
        found, got = logits_by_step(loaded.model, encoded)
    call.settle()
    assert [call.ruling(row).action for row in (0, 1)] == [PASS, STEER]
    assert got == wanted
    assert torch.allclose(found, expected, atol=1e-4 * float(expected.abs().max()))
    assert (expected[:, 1] - plain[:, 1]).abs().amax(-1)[0] > 0.1
    assert torch.allclose(found[:, 0], plain[:, 0], atol=1e-5 * float(plain.abs().max()))


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
@pytest.mark.parametrize("name", SOME)
def test_rounding_in_half_precision_is_no_trouble(name, loaded_of, llama, ask, picture, fake):
    model, processor = tiny_model(name)
    loaded = loaded_of(llama._replace(model=model.to(torch.bfloat16), processor=processor))
    encoded = encode(loaded, ask, picture, pictures=family(name).pictures)
    for wanted in ([PASS, STEER], [STEER, STEER]):
        detector = early(model, fake, wanted)
        outcomes = generate_rows(loaded, encoded, detector, SIX, policy=POLICY)
        assert [outcome.ruling.action for outcome in outcomes] == wanted


def by_hand(loaded: Any, encoded: Any, detector: Any, **options: Any) -> list[list[int]]:
    """Six greedy tokens of the batch, edited from the start in passes without a cache."""
    options = {"max_new_tokens": 6, "do_sample": False, "use_cache": False} | options
    with edited_from_the_start(loaded.model, detector, encoded.prompt_len):
        ids = loaded.model.generate(**encoded.inputs, **options)
    return ids[:, encoded.prompt_len :].tolist()


def plain(loaded: Any, encoded: Any, **options: Any) -> list[list[int]]:
    ids = loaded.model.generate(**encoded.inputs, max_new_tokens=6, do_sample=False, **options)
    return ids[:, encoded.prompt_len :].tolist()


@contextmanager
def layer_runs(model: Any):
    """Which decoder layer ran, in order."""
    runs: list[int] = []
    handles = [
        layer.register_forward_hook(lambda _m, _a, _o, number=number: runs.append(number))
        for number, layer in enumerate(decoder_layers(model))
    ]
    try:
        yield runs
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("steer_tokens", [0, 2])
@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("llama", {"cache_implementation": "static"}),
        ("llama", {"prefill_chunk_size": 4}),
        ("llama", {"prefill_chunk_size": 4, "cache_implementation": "static"}),
        ("llama", {"use_cache": False}),
        ("gemma3", {"cache_implementation": "static"}),
        ("gemma2", {"prefill_chunk_size": 5}),
        ("gemma2", {"prefill_chunk_size": 5, "cache_implementation": "static"}),
        ("qwen3_next", {"prefill_chunk_size": 5}),
        ("qwen3_5", {"prefill_chunk_size": 5}),
        ("lfm2_vl", {"prefill_chunk_size": 5}),
        ("qwen2_5_vl", {"use_cache": False}),
        ("qwen3_vl", {"cache_implementation": "static"}),
    ],
)
def test_the_way_the_model_caches_makes_no_difference_to_an_early_edit(
    name, config, steer_tokens, loaded_of, two, fake, monkeypatch, tiny_of
):
    loaded = loaded_of(tiny_of(name))
    encoded = two(loaded) if "prefill_chunk_size" not in config else texts(loaded)
    detector = early(loaded.model, fake, [STEER, PASS], steer_tokens=steer_tokens)
    expected = by_hand(loaded, encoded, detector)
    for option, value in config.items():
        monkeypatch.setattr(loaded.model.generation_config, option, value)
    detector.seen.clear()
    outcomes = generate_rows(loaded, encoded, detector, SIX, policy=POLICY)
    assert tokens(outcomes) == expected
    assert [outcome.ruling.action for outcome in outcomes] == [STEER, PASS]
    assert len(detector.seen) == 1


def texts(loaded: Any) -> Any:
    request = [
        Request((Message(role="user", parts=(TextPart(text),)),))
        for text in ("hello", "tell me about the cat and the dog in this picture")
    ]
    return Encoder(loaded).encode(request)


def test_beams_are_edited_alike_before_the_readout(tiny, loaded_of, two, fake):
    loaded = loaded_of(tiny)
    encoded = two(loaded)
    settings = Settings(max_new_tokens=6, num_beams=3)
    detector = early(loaded.model, fake, [STEER, PASS])
    outcomes = generate_rows(loaded, encoded, detector, settings, policy=POLICY)
    wide = early(loaded.model, fake, [STEER] * 3 + [PASS] * 3)
    assert tokens(outcomes) == by_hand(loaded, encoded, wide, num_beams=3)
    assert tokens(outcomes)[1] == plain(loaded, encoded, num_beams=3)[1]
    assert outcomes[0].ruling.strength == pytest.approx(40.0, rel=1e-4)


def test_nothing_runs_twice_unless_a_row_is_steered(tiny, loaded_of, two, fake):
    loaded = loaded_of(tiny)
    encoded = two(loaded)
    with layer_runs(loaded.model) as runs:
        plain(loaded, encoded)
        unguarded = list(runs)
        for wanted, policy in (
            ([PASS, PASS], POLICY),
            ([PASS, FLAG], POLICY),
            ([STEER, STEER], Policy(mode="shadow")),
            ([STEER, STEER], Policy(actions=frozenset({FLAG}))),
        ):
            runs.clear()
            detector = early(loaded.model, fake, wanted)
            outcomes = generate_rows(loaded, encoded, detector, SIX, policy=policy)
            assert runs == unguarded
            assert tokens(outcomes)[0] == plain(loaded, encoded)[0]
        runs.clear()
        detector = early(loaded.model, fake, [PASS, STEER])
        generate_rows(loaded, encoded, detector, SIX, policy=POLICY)
    assert runs == [0, 1, 2, 3, 1, 2, 3, *unguarded[4:]]


def test_a_flagged_row_beside_a_steered_one_gets_no_token(tiny, loaded_of, two, fake):
    loaded = loaded_of(tiny)
    encoded = two(loaded)
    detector = early(loaded.model, fake, [FLAG, STEER])
    outcomes = generate_rows(loaded, encoded, detector, SIX, policy=POLICY)
    assert tokens(outcomes) == [[], by_hand(loaded, encoded, detector)[1]]


def test_a_check_says_whether_an_early_edit_reaches_a_row_and_runs_nothing_twice(
    tiny, loaded_of, two, fake
):
    loaded = loaded_of(tiny)
    encoded = two(loaded)
    reaching = early(loaded.model, fake, [STEER, PASS])
    beyond = early(loaded.model, fake, [STEER, PASS], strength=0.0)
    with layer_runs(loaded.model) as runs:
        rulings = check_rows(loaded, encoded, reaching, policy=POLICY)
        assert runs == [0, 1, 2, 3]
        assert [r.action for r in rulings] == [STEER, PASS]
        assert [r.action for r in check_rows(loaded, encoded, beyond, policy=POLICY)] == [
            FLAG,
            PASS,
        ]
    outcomes = generate_rows(loaded, encoded, beyond, SIX, policy=POLICY)
    assert tokens(outcomes) == [[], plain(loaded, encoded)[1]]


@pytest.mark.parametrize("name", ["llama", "gemma3", "qwen3_5", "mllama"])
def test_a_prompt_of_one_token_is_edited_before_the_readout(name, tiny_of, loaded_of, fake):
    """There is no earlier position by which the second run could be checked."""
    model = tiny_of(name).model
    inputs = {"input_ids": torch.tensor([[7]]), "attention_mask": torch.ones(1, 1, dtype=int)}
    encoded = SimpleNamespace(inputs=inputs, prompt_len=1, kinds=("text",))
    detector = early(model, fake, [STEER])
    with edited_from_the_start(model, detector, 1):
        expected, wanted = logits_by_step(model, encoded, use_cache=False)
    call = call_of(encoded, detector)
    with prompt_hooks(model, check_layers(detector, model)) as hooks, hooks.active(call):
        found, got = logits_by_step(model, encoded)
    assert call.ruling(0).action is STEER
    assert got == wanted
    assert torch.allclose(found, expected, atol=1e-3)


@pytest.mark.parametrize("fail", ["closed", "open"])
@pytest.mark.parametrize("static", [False, True], ids=["dynamic", "static"])
@pytest.mark.parametrize("trouble", ["other values", "an exception", "written over", "cache"])
def test_a_second_run_that_does_not_repeat_the_first_fails_its_rows_and_leaves_no_trace(
    trouble, static, fail, loaded_of, two, fake, llama, monkeypatch
):
    model, processor = tiny_model("llama")
    loaded = loaded_of(llama._replace(model=model, processor=processor))
    encoded = two(loaded)
    if static:
        monkeypatch.setattr(model.generation_config, "cache_implementation", "static")
    expected = plain(loaded, encoded)
    handle = spoil(model, trouble)
    detector = early(model, fake, [PASS, STEER])
    outcomes = generate_rows(loaded, encoded, detector, SIX, policy=Policy(fail=fail))
    handle.remove()
    assert [outcome.ruling.failed for outcome in outcomes] == [False, True]
    assert tokens(outcomes) == [expected[0], [] if fail == "closed" else expected[1]]


def spoil(model: Any, trouble: str) -> Any:
    """A model that does something else at layer 2 the second time within a pass."""
    layers, runs = decoder_layers(model), []

    def second(_module: Any, args: Any, kwargs: Any, output: Any) -> Any:
        if args[0].shape[1] == 1:  # a decoding step
            return None
        runs.append(1)
        if trouble == "written over" and len(runs) == 1:
            args[0].mul_(1.5).div_(1.25)
        if trouble == "other values" and len(runs) > 1:
            return output * 1.01
        if trouble == "an exception" and len(runs) > 1:
            raise RuntimeError("once is enough")
        if trouble == "cache" and len(runs) > 1:
            kwargs["cache"].layers[2].update(*[torch.zeros(2, 2, 1, 8)] * 2)
        return None

    at = 1 if trouble == "written over" else 2
    return layers[at].register_forward_hook(second, with_kwargs=True)


@pytest.mark.parametrize(("place", "failed"), [(-1, True), (2, False)])
def test_what_a_model_adds_between_layers_is_added_again_but_not_where_the_edit_is(
    place, failed, loaded_of, two, fake, llama
):
    """At the edited position it could depend on the edit, and nobody would notice."""
    model, processor = tiny_model("llama")
    loaded = loaded_of(llama._replace(model=model, processor=processor))
    encoded = two(loaded)

    class Adding(torch.nn.Module):
        def forward(self, hidden: torch.Tensor, **_kwargs: Any) -> torch.Tensor:
            extra = torch.zeros_like(hidden)
            extra[:, place] = 0.5
            return hidden + extra

    class Interrupted(torch.nn.ModuleList):
        def __getitem__(self, at: Any) -> Any:
            every = list(self)
            return [*every[:2], Adding(), *every[2:]] if isinstance(at, slice) else every[at]

    decoder_layers(model).__class__ = Interrupted
    detector, one = early(model, fake, [PASS, STEER]), Settings(max_new_tokens=1)
    hand = by_hand(loaded, encoded, detector, max_new_tokens=1)
    outcomes = generate_rows(loaded, encoded, detector, one, policy=POLICY)
    assert outcomes[1].ruling.failed is failed
    assert tokens(outcomes) == [hand[0], [] if failed else hand[1]]


def test_a_layer_in_between_that_is_compiled_fails_the_rows_to_be_steered(
    loaded_of, two, fake, llama
):
    model, processor = tiny_model("llama")
    loaded = loaded_of(llama._replace(model=model, processor=processor))
    encoded = two(loaded)
    expected = plain(loaded, encoded)
    decoder_layers(model)[1].compile(backend="eager")
    detector = early(model, fake, [PASS, STEER])
    outcomes = generate_rows(loaded, encoded, detector, SIX, policy=POLICY)
    assert tokens(outcomes) == [expected[0], []]
    assert outcomes[1].ruling.failed
    torch.compiler.reset()


def test_an_early_edit_that_leaves_no_finite_residual_fails_its_row(llama, loaded_of, two, fake):
    loaded = loaded_of(llama)
    detector = early(loaded.model, fake, [PASS, STEER], strength=3e38)
    outcomes = generate_rows(loaded, two(loaded), detector, SIX, policy=POLICY)
    assert [outcome.ruling.failed for outcome in outcomes] == [False, True]
    assert tokens(outcomes) == [plain(loaded, two(loaded))[0], []]


def test_pictures_put_between_layers_are_there_in_the_second_run_too(
    tiny_of, loaded_of, ask, picture, fake
):
    """Deepstack adds what the tower saw behind the first layers, where no layer's hook sees it."""
    loaded = loaded_of(tiny_of("qwen3_vl"))
    encoded = encode(loaded, ask, picture, pictures=True)
    given: list[Any] = []

    def note(_module: Any, args: Any, kwargs: Any) -> None:
        given.append(args[0] if args else kwargs["hidden_states"])

    first, second = decoder_layers(loaded.model)[:2]
    handles = [
        first.register_forward_hook(lambda _m, _a, output: given.append(output)),
        second.register_forward_pre_hook(note, with_kwargs=True),
    ]
    generate_rows(loaded, encoded, early(loaded.model, fake, [PASS, STEER]), SIX, policy=POLICY)
    for handle in handles:
        handle.remove()
    output, once, again = given[:3]
    assert not torch.equal(output, once)
    assert torch.equal(output[:, -1], once[:, -1])
    assert torch.allclose(once[:, :-1], again[:, :-1], atol=1e-5)
    assert (again[1, -1] - once[1, -1]).norm() == pytest.approx(40.0, rel=1e-4)


def test_next_token_logits_take_an_early_edit(tiny, loaded_of, two, fake):
    loaded = loaded_of(tiny)
    encoded = two(loaded)
    detector = early(loaded.model, fake, [PASS, STEER])
    with edited_from_the_start(loaded.model, detector, encoded.prompt_len), torch.no_grad():
        expected = loaded.model(**encoded.inputs).logits[:, -1]
    assert torch.allclose(next_token_logits(loaded, encoded, detector), expected, atol=1e-4)


def test_threads_with_different_early_edits_do_not_mix(tiny, loaded_of, two, fake):
    loaded = loaded_of(tiny)
    encoded = two(loaded)
    layers = check_layers(early(loaded.model, fake, [PASS]), loaded.model)
    jobs = [
        (actions, 30.0 + number)
        for number in range(3)
        for actions in ([PASS, STEER], [STEER, FLAG], [PASS, PASS])
    ]

    def answer(job: Any) -> Any:
        detector = early(loaded.model, fake, job[0], strength=job[1])
        outcomes = generate_rows(loaded, encoded, detector, SIX, policy=POLICY, hooks=hooks)
        return [(o.token_ids, o.ruling.action, round(o.ruling.strength, 2)) for o in outcomes]

    with prompt_hooks(loaded.model, layers) as hooks:
        serial = [answer(job) for job in jobs]
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(answer, jobs)) == serial
    assert [one[1][1] for one in serial[:3]] == [STEER, FLAG, PASS]


def test_no_layer_between_keeps_the_residuals_of_the_others_alive(loaded_of, two, fake, llama):
    """With many rows of many positions they would be the largest thing beside the weights."""
    model, processor = tiny_model("llama")
    encoded = two(loaded_of(llama._replace(model=model, processor=processor)))
    layers, given = decoder_layers(model), []
    alive: list[list[int]] = []
    for layer in layers:
        layer.register_forward_hook(lambda _m, _a, output: given.append(weakref.ref(output)))
    layers[3].register_forward_pre_hook(
        lambda _m, _a: alive.append([i for i, kept in enumerate(given) if kept() is not None])
    )
    detector = fake([PASS, PASS], layers=(3,), steering_layer=0)
    call = call_of(encoded, detector)
    with torch.no_grad(), prompt_hooks(model, check_layers(detector, model)) as hooks:
        with hooks.active(call):
            model(**encoded.inputs)
    assert alive == [[0, 2]]  # the edit layer's, and what the layer is given
    assert all(kept() is None for kept in given)


def test_keys_that_later_layers_share_are_put_back_after_a_failed_run(ask, fake, loaded_of, llama):
    small, processor = tiny_model("gemma4")
    small.config.get_text_config().num_kv_shared_layers = 2
    torch.manual_seed(0)
    model = type(small)(small.config).eval()
    encoded = Encoder(loaded_of(llama._replace(model=model, processor=processor))).encode(
        [ask("hello"), ask("tell me about the cat")]
    )
    detector = fake([PASS, STEER], layers=(2,), steering_layer=0)
    expected, _ = logits_by_step(model, encoded)
    runs: list[int] = []

    def once(*_: Any) -> None:
        runs.append(1)
        if len(runs) == 2:
            raise RuntimeError("once is enough")

    decoder_layers(model)[2].register_forward_hook(once)
    call = call_of(encoded, detector)
    call.policy = Policy(fail="open")
    with prompt_hooks(model, check_layers(detector, model)) as hooks, hooks.active(call):
        found, _ = logits_by_step(model, encoded)
    assert [call.ruling(row).failed for row in (0, 1)] == [False, True]
    assert torch.equal(found, expected)


def test_a_layer_that_is_given_something_else_fails_the_rows_to_be_steered_alone(
    loaded_of, two, fake, llama
):
    model, processor = tiny_model("llama")
    loaded = loaded_of(llama._replace(model=model, processor=processor))
    encoded = two(loaded)
    expected = plain(loaded, encoded)
    layer = decoder_layers(model)[2]
    usual = layer.forward
    layer.forward = lambda packed, **kwargs: usual(packed["hidden"], **kwargs)
    layer.register_forward_pre_hook(lambda _m, args: ({"hidden": args[0]}, *args[1:]))
    outcomes = generate_rows(loaded, encoded, early(model, fake, [PASS, STEER]), SIX, policy=POLICY)
    assert tokens(outcomes) == [expected[0], []]
    assert outcomes[1].ruling.failed


def test_a_model_whose_rows_affect_each_other_fails_the_rows_to_be_steered(
    loaded_of, two, fake, llama, caplog
):
    model, processor = tiny_model("llama")
    loaded = loaded_of(llama._replace(model=model, processor=processor))
    encoded = two(loaded)

    def mixed(_module: Any, _args: Any, hidden: torch.Tensor) -> torch.Tensor | None:
        return None if hidden.shape[1] == 1 else hidden + 0.1 * hidden.mean(dim=0)

    decoder_layers(model)[2].register_forward_hook(mixed)
    expected = plain(loaded, encoded)
    outcomes = generate_rows(loaded, encoded, early(model, fake, [PASS, STEER]), SIX, policy=POLICY)
    assert [outcome.ruling.failed for outcome in outcomes] == [False, True]
    assert tokens(outcomes) == [expected[0], []]
    assert "changes other rows" in caplog.text


LAYERS = {
    "dynamic": lambda: cache_utils.DynamicLayer(),
    "window": lambda: cache_utils.DynamicSlidingWindowLayer(sliding_window=4),
    "static": lambda: cache_utils.StaticLayer(max_cache_len=16),
    "static window": lambda: cache_utils.StaticSlidingWindowLayer(
        max_cache_len=16, sliding_window=4
    ),
    "states": lambda: cache_utils.LinearAttentionLayer(),
    "states and keys": lambda: cache_utils.LinearAttentionAndFullAttentionLayer(),
}


def feed(layer: Any, length: int, seed: int) -> list[torch.Tensor]:
    """Positions as a model brings them; what later layers of the model get to see."""
    generator = torch.Generator().manual_seed(seed)
    keys, values, states = (torch.randn(2, 2, length, 3, generator=generator) for _ in range(3))
    seen: list[torch.Tensor] = []
    if hasattr(layer, "update_conv_state"):
        kernel = states.flatten(1, 2).transpose(1, 2)
        seen.append(layer.update_conv_state(kernel, conv_kernel_size=3).clone())
        seen.append(layer.update_recurrent_state(states.sum(2)).clone())
    if hasattr(layer, "update"):
        seen += [tensor.clone() for tensor in layer.update(keys, values)]
    return seen


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("before", [0, 3, 6], ids=lambda n: f"after {n}")
@pytest.mark.parametrize("reused", [False, True], ids=["fresh", "reused"])
def test_what_is_put_back_goes_on_as_if_nothing_had_come_between(name, before, reused):
    layer, other = LAYERS[name](), LAYERS[name]()
    for one in (layer, other):
        if reused:
            feed(one, 5, 9)
            one.reset()
        if before:
            feed(one, before, 1)
    state = LayerState(layer, empty=before == 0)
    for seed in (2, 3):
        feed(layer, 5, seed)
        state.put_back()
    for length, seed in ((5, 4), (1, 5), (1, 6)):
        assert all(map(torch.equal, feed(layer, length, seed), feed(other, length, seed)))


@pytest.mark.parametrize("name", ["static", "static window"])
def test_tensors_that_a_compiled_graph_knows_stay_where_they_are(name):
    layer = LAYERS[name]()
    feed(layer, 3, 1)
    state, before = LayerState(layer, empty=False), (layer.keys, layer.values)
    feed(layer, 5, 2)
    state.put_back()
    assert (layer.keys, layer.values)[0] is before[0]
    assert layer.values is before[1]


@pytest.mark.parametrize("name", ["dynamic", "window", "static", "static window", "states"])
def test_remembering_a_layer_before_a_prompt_copies_no_keys(name):
    layer = LAYERS[name]()
    feed(layer, 5, 1)
    layer.reset()
    copied: list[int] = []

    class Counting(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, _types: Any, args: Any = (), kwargs: Any = None):
            out = func(*args, **(kwargs or {}))
            if func is torch.ops.aten.clone.default:
                copied.append(out.numel())
            return out

    with Counting():
        LayerState(layer, empty=True)
    assert sum(copied) <= 1  # a counter
