"""The model under the checks, with what all of them need measured once."""

from __future__ import annotations

import math
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from guardrail.conformance import reference
from guardrail.conformance.directions import Directions
from guardrail.conformance.layers import choose_layers
from guardrail.conformance.outcomes import DoesNotApplyError, WrongResultError, first_line
from guardrail.conformance.plain import plain_inputs
from guardrail.conformance.prompts import TEXTS, picture_request, text_requests
from guardrail.decide.detector import Detector
from guardrail.errors import GuardrailError
from guardrail.model.encode import Encoder
from guardrail.model.generate import last_residuals
from guardrail.policy import Policy, Thresholds
from guardrail.types import Action, Modality

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from guardrail.artefact import Artefact
    from guardrail.model.encode import Encoded
    from guardrail.model.load import LoadedModel
    from guardrail.types import Request

TOKENS = 4  # new tokens of an answer
NEVER = 1e6  # a threshold that no score reaches
MOVE = 0.8  # length of an edit, in text gaps
# Two ways of computing the same residual differ by this share of its length.
_RELATIVE = {torch.float32: 2e-5, torch.float64: 1e-9, torch.float16: 4e-3, torch.bfloat16: 3e-2}


@dataclass(frozen=True, slots=True)
class Ask:
    """A request, its own inputs and its reference residuals (L - 1, d_model) float64."""

    request: Request
    inputs: dict[str, Any]
    states: Tensor


class Subject:
    """A model in memory; nobody else may be using it.

    Raises:
        GuardrailError: a guard cannot work inside this model at all.
    """

    def __init__(self, loaded: LoadedModel, *, seed: int = 0) -> None:
        self.loaded, self.model = loaded, loaded.model
        self.encoder, self.layers = Encoder(loaded), choose_layers(loaded.model)
        self.texts = self._asked_texts()
        states = torch.stack([text.states for text in self.texts])
        self.directions = Directions(loaded, states, seed=seed)

    def _asked_texts(self) -> list[Ask]:
        """Texts; beside a picture each where the model's own processor takes no text alone."""
        requests = text_requests()
        try:
            plain_inputs(self.loaded, requests[0])
        except Exception as error:  # a border: a processor's refusal, whatever it raises
            if not self.loaded.is_multimodal:
                raise
            self.text_trouble = first_line(error)
            requests = [picture_request(1, text, seed=n) for n, text in enumerate(TEXTS)]
        try:
            last_residuals(self.loaded, self.encoder.encode(requests[:1]), self.layers.read)
        except GuardrailError:
            raise
        except Exception:  # a border: is it the guard that crashes, or the model by itself?
            self.asked(requests[0])
            raise
        return [self.asked(request) for request in requests]

    def asked(self, request: Request) -> Ask:
        """A request with its slow reference.

        Raises:
            DoesNotApplyError: the unguarded model cannot be asked that.
        """
        try:
            inputs = plain_inputs(self.loaded, request)
            return Ask(request, inputs, reference.residuals(self.model, inputs))
        except WrongResultError:
            raise
        except Exception as error:  # a border: any failure of the unguarded model means the same
            raise DoesNotApplyError(
                f"without a guard, plain transformers fails here as well ({first_line(error)})"
            ) from error

    def encode(self, asks: Sequence[Ask]) -> Encoded:
        """The guard's own inputs of a batch."""
        self._expect_padding(asks)
        return self.encoder.encode([ask.request for ask in asks])

    def _expect_padding(self, asks: Sequence[Ask]) -> None:
        if len(asks) > 1 and not self.encoder.can_batch:
            raise DoesNotApplyError(
                "the tokenizer has no padding token, so a guard answers requests one by one; set "
                "tokenizer.pad_token to have batches checked"
            )

    @cached_property
    def pictures(self) -> list[Ask]:
        """A request with one picture and, where the model takes them, one with two."""
        if not self.loaded.is_multimodal:
            raise DoesNotApplyError("the model's processor takes no pictures")
        found = [self.asked(picture_request(1))]
        try:
            found.append(self.asked(picture_request(2)))
        except DoesNotApplyError as error:
            self.one_picture_only = str(error)
        return found

    one_picture_only: str | None = None
    text_trouble: str | None = None

    def scores(self, artefact: Artefact, asks: Sequence[Ask]) -> list[float]:
        """Reference scores."""
        kinds = [ask.request.offset_kind for ask in asks]
        return [
            reference.score(artefact, ask.states, k) for ask, k in zip(asks, kinds, strict=True)
        ]

    def tolerance(self, artefact: Artefact, states: Tensor) -> float:
        """How far two computations of one score may lie apart in this dtype."""
        layers = list(artefact.header.readout.layers)
        length = states[layers].norm(dim=-1) / artefact.tensors["readout_gap"].double()
        along = float(length.max()) / math.sqrt(self.loaded.d_model)
        return 4 * self.relative * along

    def effect(self, artefact: Artefact, ask: Ask, other: Ask) -> float:
        """How far apart the scores of two requests are that differ in their media alone.

        In units of the tolerance: a comparison of scores sees no media below 1. A model that reads
        letters alone may see nothing in noise.
        """
        one, two = self.scores(artefact, [ask, other])
        return abs(one - two) / self.tolerance(artefact, ask.states)

    @cached_property
    def text_inputs(self) -> dict[str, Any]:
        """The texts as one batch for plain transformers."""
        self._expect_padding(self.texts)
        return plain_inputs(self.loaded, *(text.request for text in self.texts))

    def slow_tokens(
        self, vectors: Tensor, *, steer_tokens: int = 0, **config: Any
    ) -> list[list[int]] | None:
        """Tokens of the texts, each moved by its vector, by cacheless generation.

        None where there is nothing to compare with: the model needs its cache, or its dtype lets
        two ways of computing a logit choose different tokens.
        """
        if not self.exact:
            return None
        return reference.steered_tokens(
            self.model,
            self.text_inputs,
            self.layers.steer,
            vectors,
            TOKENS,
            steer_tokens=steer_tokens,
            **config,
        )

    @property
    def exact(self) -> bool:
        """Whether the dtype is fine enough for equal tokens by different ways of computing."""
        return self.model.dtype in (torch.float32, torch.float64)

    @property
    def relative(self) -> float:
        """The share of a value's size by which two ways of computing it may differ."""
        return _RELATIVE.get(self.model.dtype, 3e-2)

    def split(self, artefact: Artefact) -> tuple[int, float]:
        """Which text has the highest score, and a threshold between it and the others."""
        scores = self.scores(artefact, self.texts)
        order = sorted(range(len(scores)), key=scores.__getitem__)
        return order[-1], (scores[order[-1]] + scores[order[-2]]) / 2

    def detector(self, artefact: Artefact, policy: Policy) -> Detector:
        """The detector that the guard would use."""
        return Detector.from_artefact(artefact, policy)

    def steering(
        self, read: Sequence[int], steer: int, *, steer_tokens: int = 0
    ) -> tuple[Artefact, int, float]:
        """An artefact that moves the highest text by `MOVE` gaps, that text's number, the gate."""
        flat = self.directions.artefact(read, steer)
        top, gate = self.split(flat)
        gain = MOVE / (self.scores(flat, self.texts)[top] - gate)
        return (
            self.directions.artefact(read, steer, gain=gain, steer_tokens=steer_tokens),
            top,
            gate,
        )

    @contextmanager
    def configured(self, **changes: Any) -> Iterator[None]:
        """The model's own generation config with some settings changed, for the block."""
        config: Any = self.model.generation_config
        before = {name: getattr(config, name, None) for name in changes}
        config.update(**changes)
        for name, value in changes.items():  # settings without a declared field are set as well
            setattr(config, name, value)
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(config, name, value)


def rules(
    *,
    steer: float = NEVER,
    flag: float = NEVER,
    actions: frozenset[Action] | None = None,
    only: Modality | None = None,
) -> Policy:
    """A policy with fixed thresholds for all modalities, or for one that the others never reach."""
    never, both = Thresholds(steer=NEVER, flag=NEVER), Thresholds(steer=min(steer, flag), flag=flag)
    allowed = frozenset({Action.STEER, Action.FLAG}) if actions is None else actions
    thresholds = {m: both if only in (None, m) else never for m in Modality}
    return Policy(thresholds=thresholds, actions=allowed)
