"""Guards on tiny models, with random directions and thresholds that force an action."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
import torch

from guardrail.artefact import Artefact
from guardrail.artefact.header import Header, Line, Readout, Recentring, Steering
from guardrail.guard import Guard
from guardrail.model.decoder import decoder_layers
from guardrail.model.fingerprint import fingerprint
from guardrail.model.load import wrap_model
from guardrail.policy import Policy, Thresholds
from guardrail.types import Action, Clip, Modality

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LAYERS, WIDTH, READ = 4, 32, (1, 2)
FAR = 1e9
FORCED = {
    Action.PASS: Thresholds(steer=FAR, flag=FAR),
    Action.STEER: Thresholds(steer=-FAR, flag=FAR),
    Action.FLAG: Thresholds(steer=-FAR, flag=-FAR),
}


def random_artefact(
    tiny: Any, *, steering: bool = True, steer_tokens: int = 0, video: bool = True
) -> Artefact:
    """Random unit directions; a steered row is moved by 30 text gaps."""
    generator = torch.Generator().manual_seed(5)
    direction = torch.randn(LAYERS, WIDTH, generator=generator)
    direction /= direction.norm(dim=1, keepdim=True)
    safe = torch.randn(LAYERS, WIDTH, generator=generator)
    weight = direction[list(READ)]
    tensors = {
        "direction": direction,
        "mu_safe": safe,
        "mu_unsafe": safe + 2 * direction,
        "readout_weight": weight,
        "readout_zero": (safe[list(READ)] * weight).sum(1),
        "readout_gap": torch.full((2,), 2.0),
    }
    lines = {"image": (0.25, 0.8), "images": (0.75, 0.7)} | (
        {"video": (-0.5, 1.25)} if video else {}
    )
    how = None
    if steering:
        how = Steering(layer=2, gain=FAR, a_max=30, region_max=FAR, steer_tokens=steer_tokens)
    header = Header(
        fingerprint=fingerprint(wrap_model(tiny.model, tiny.processor)),
        readout=Readout(estimator="difference", layers=READ),
        steering=how,
        recentring={
            kind: Recentring.unmeasured(Line(intercept=b, slope=m), steering=steering)
            for kind, (b, m) in lines.items()
        },
    )
    return Artefact(header, tensors)


@pytest.fixture(scope="session")
def artefact_of() -> Callable[..., Artefact]:
    return random_artefact


@pytest.fixture(scope="session")
def forcing() -> Callable[..., Policy]:
    """`forcing(Action.STEER, mode="shadow")`: a policy whose thresholds leave no choice."""

    def make(action: Action, **options: Any) -> Policy:
        return Policy(thresholds=dict.fromkeys(Modality, FORCED[action]), **options)

    return make


@pytest.fixture
def guard_on(forcing: Callable[..., Policy]) -> Iterator[Callable[..., Guard]]:
    """`guard_on(tiny, Action.PASS, ...)`; closed after the test, and nothing may be left behind."""
    guards: list[Guard] = []

    def make(
        tiny: Any,
        action: Action = Action.PASS,
        *,
        steering: bool = True,
        steer_tokens: int = 0,
        video: bool = True,
        audit: Any = None,
        **policy: Any,
    ) -> Guard:
        artefact = random_artefact(tiny, steering=steering, steer_tokens=steer_tokens, video=video)
        guard = Guard(
            (tiny.model, tiny.processor),
            artefact,
            policy=forcing(action, **policy),
            audit=audit,
        )
        guards.append(guard)
        return guard

    yield make
    for guard in guards:
        guard.close()


@pytest.fixture(scope="session")
def clip(picture: Callable[..., Any]) -> Callable[..., Clip]:
    """`clip(seed, 2, start=4.0)`: noise, a frame a second."""

    def make(seed: int = 0, count: int = 2, *, start: float = 0.0) -> Clip:
        frames = tuple(picture(1000 + 10 * seed + i) for i in range(count))
        return Clip(frames, tuple(start + i for i in range(count)))

    return make


@pytest.fixture
def slow_layers() -> Iterator[Callable[[Any, float], None]]:
    """`slow_layers(model, 0.01)`: every pass takes that long, so that tests can step in."""
    handles: list[Any] = []

    def slow(model: Any, seconds: float) -> None:
        layer = decoder_layers(model)[0]
        handles.append(layer.register_forward_pre_hook(lambda *_: time.sleep(seconds)))

    yield slow
    for handle in handles:
        handle.remove()
