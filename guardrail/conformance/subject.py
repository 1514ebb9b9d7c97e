"""The model under the checks: what it is asked, where it is read, and the artefacts it gets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from guardrail.artefact.artefact import Artefact
from guardrail.artefact.header import (
    Calibration,
    Header,
    LayerRow,
    Line,
    Readout,
    Recentring,
    Steering,
    Windows,
)
from guardrail.conformance import reference
from guardrail.conformance.reference import DoesNotApplyError, WrongResultError, first_line
from guardrail.decide.detector import Detector
from guardrail.errors import DetectorError, GuardrailError, UnsupportedModelError
from guardrail.model.decoder import decoder_layers, self_attention_layers
from guardrail.model.encode import Encoder
from guardrail.model.fingerprint import fingerprint
from guardrail.model.generate import check_rows, generate_rows, last_residuals
from guardrail.model.settings import Settings
from guardrail.policy import Policy, Thresholds
from guardrail.types import Action, Clip, ImagePart, Message, Modality, Request, TextPart, VideoPart

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from guardrail.model.encode import Encoded
    from guardrail.model.generate import RowOutcome
    from guardrail.model.load import LoadedModel
    from guardrail.model.prefill import Ruling
    from guardrail.types import Part

TOKENS = 4  # new tokens of an answer
NEVER = 1e6  # a threshold that no score reaches
FAR = 1e6  # a trust region without an end
MOVE = 0.8  # length of an edit, in text gaps
REACH = 0.6  # length of the text gap at a layer, in units of its residuals' mean length
LEAST = 0.01  # of a residual's mean length: the smallest unit of a score
# Two ways of computing the same residual differ by this share of its length.
_RELATIVE = {torch.float32: 2e-5, torch.float64: 1e-9, torch.float16: 4e-3, torch.bfloat16: 3e-2}

TEXTS = (
    "Tell me about the red cat.",
    "Hello",
    "Write a short letter to a friend, please, and say in it what you can see out of the window.",
    "How do I make bread? What do I need?",
)


def picture_request(count: int, text: str = TEXTS[0], *, seed: int = 0) -> Request:
    """A request with `count` pictures of unequal shape before its words."""
    sizes = ((56, 40), (40, 72), (64, 64))
    pictures = [ImagePart(_noise(seed + i, *sizes[i % len(sizes)])) for i in range(count)]
    return _request(*pictures, TextPart(text))


def video_request(*, seed: int = 0, as_pictures: bool = False) -> Request:
    """A request with a video of four frames before its words, or with its frames as pictures."""
    frames = tuple(_noise(seed + i, 56, 56) for i in range(4))
    shown: Sequence[Part] = [VideoPart(Clip(frames=frames, times=(0.0, 0.5, 1.0, 1.5)))]
    if as_pictures:
        shown = [ImagePart(frame) for frame in frames]
    return _request(*shown, TextPart(TEXTS[0]))


def chat_behind(request: Request) -> Request:
    """The chat goes on: it was answered, and the user says something else."""
    said = (("assistant", "It is four."), ("user", "Thank you."))
    more = (Message(role=role, parts=(TextPart(text),)) for role, text in said)
    return Request((*request.messages, *more))


def _request(*parts: Part) -> Request:
    return Request((Message(role="user", parts=parts),))


def _noise(seed: int, width: int, height: int) -> Image.Image:
    """An RGB picture, the same for the same seed."""
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height, width, 3), dtype=np.uint8))


def choose_layers(model: PreTrainedModel) -> tuple[tuple[int, ...], int]:
    """The readout layers and the steering layer: near the middle, for any number of layers.

    They run for every prompt, and the last layer is none of them: its output is not in
    `hidden_states`. Where pictures come in by cross-attention, the readout lies behind that.

    Raises:
        UnsupportedModelError: the decoder has fewer than two such layers.
    """
    count, always = len(decoder_layers(model)), self_attention_layers(model)
    usable = [layer for layer in always if layer < count - 1]
    if not usable:
        raise UnsupportedModelError(
            f"a decoder of {count} layers has none before the last one to read"
        )
    entry = min(set(range(count)) - set(always), default=0)
    middle = (len(usable) - 1) // 2
    while usable[middle] < entry and middle + 1 < len(usable):
        middle += 1
    read = tuple(usable[max(middle - 1, 0) : middle + 1])
    return read, usable[min(middle + 1, len(usable) - 1)]


@dataclass(frozen=True, slots=True)
class Ask:
    """A request, its own inputs and its reference residuals (L - 1, d_model) float64."""

    request: Request
    inputs: dict[str, Any]
    states: Tensor


@dataclass(frozen=True, slots=True)
class Steered:
    """What steers one of the texts: its `row`, and the edit of each: (rows, d_model) float64."""

    artefact: Artefact
    policy: Policy
    row: int
    vectors: Tensor


class Subject:
    """A model in memory, with random unit directions for it; nobody else may be using it.

    Raises:
        GuardrailError: a guard cannot work inside this model at all.
    """

    text_trouble: str | None = None
    one_picture_only: str | None = None

    def __init__(self, loaded: LoadedModel, *, seed: int = 0) -> None:
        self.loaded, self.model, self.encoder = loaded, loaded.model, Encoder(loaded)
        self.read, self.steer = choose_layers(loaded.model)
        self.texts = self._asked_texts()
        self._states = torch.stack([text.states for text in self.texts])
        self._print = fingerprint(loaded)
        random = torch.Generator().manual_seed(seed)
        shape = (loaded.layer_count, loaded.d_model)
        drawn = torch.randn(shape, generator=random, dtype=torch.float64)
        drawn -= drawn.mean(dim=1, keepdim=True)  # a LayerNorm would take it away again
        self._direction = drawn / drawn.norm(dim=1, keepdim=True)

    def _asked_texts(self) -> list[Ask]:
        """Texts; beside a picture each where the model's own processor takes no text alone."""
        requests = [_request(TextPart(text)) for text in TEXTS]
        try:
            reference.plain_inputs(self.loaded, requests[0])
        except Exception as error:  # a border: a processor's refusal, whatever it raises
            if not self.loaded.is_multimodal:
                raise
            self.text_trouble = first_line(error)
            requests = [picture_request(1, text, seed=n) for n, text in enumerate(TEXTS)]
        try:
            last_residuals(self.loaded, self.encoder.encode(requests[:1]), self.read)
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
            inputs = reference.plain_inputs(self.loaded, request)
            return Ask(request, inputs, reference.residuals(self.model, inputs))
        except WrongResultError:
            raise
        except Exception as error:  # a border: any failure of the unguarded model means the same
            raise DoesNotApplyError(
                f"without a guard, plain transformers fails here as well ({first_line(error)})"
            ) from error

    @cached_property
    def pictures(self) -> list[Ask]:
        """A request with one picture and, where the model takes them, one with two."""
        self.expect_pictures()
        found = [self.asked(picture_request(1))]
        try:
            found.append(self.asked(picture_request(2)))
        except DoesNotApplyError as error:
            self.one_picture_only = str(error)
        return found

    def expect_pictures(self) -> None:
        """End a check of what takes no pictures."""
        if not self.loaded.is_multimodal:
            raise DoesNotApplyError("the model's processor takes no pictures")

    @cached_property
    def text_inputs(self) -> dict[str, Any]:
        """The texts as one batch for plain transformers."""
        self._expect_padding(self.texts)
        return reference.plain_inputs(self.loaded, *(text.request for text in self.texts))

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

    def artefact(
        self, read: Sequence[int] | None = None, steer: int | None = None, **steering: Any
    ) -> Artefact:
        """One whose scores of the texts have mean 0 and spread 1 (or less) at each readout layer.

        It reads `self.read` by default, and steers where a layer for that is given.
        """
        rows = list(self.read if read is None else read)
        along = torch.einsum("nkd,kd->nk", self._states[:, rows], self._direction[rows])
        safe = torch.cat([self._states.mean(dim=0), torch.zeros(1, self.loaded.d_model)])
        lengths = self._states.norm(dim=-1).mean(dim=0)
        gaps = REACH * torch.cat([lengths, lengths[-1:]])
        tensors = {
            "direction": self._direction,
            "mu_safe": safe,
            "mu_unsafe": safe + gaps[:, None] * self._direction,
            "readout_weight": self._direction[rows],
            "readout_zero": along.mean(dim=0),
            # where texts end alike, as after a first short convolution, any error would be small
            "readout_gap": along.std(dim=0).maximum(LEAST * lengths[rows]),
        }
        recentring = {
            kind: Recentring.unmeasured(
                Line(intercept=0.1 * number, slope=0.9), steering=steer is not None
            )
            for number, kind in enumerate(("image", "images", "video"), start=1)
        }
        edits = {"gain": 1.0, "a_max": 2.0, "region_max": FAR, **steering}
        never = Thresholds(steer=NEVER, flag=NEVER)
        made_up = Calibration(scores=(), thresholds=never, source="made up for checks", n=0)
        header = Header(
            fingerprint=self._print,
            readout=Readout(estimator="random", layers=tuple(rows)),
            steering=None if steer is None else Steering(layer=steer, **edits),
            layers=tuple(LayerRow(layer=i, usable=True) for i in range(self.loaded.layer_count)),
            recentring=recentring,
            calibration={Modality.TEXT: made_up},
            warnings=("random directions: for conformance checks only",),
        )
        return Artefact(header, {name: value.float() for name, value in tensors.items()})

    def windowed(self) -> Artefact:
        """`artefact()` with windows, whose scores are about as large as those of the readout."""
        flat = self.artefact()
        layers, gap = flat.header.readout.layers, flat.tensors["readout_gap"]
        length = self._states[:, list(layers)].norm(dim=-1).mean(dim=0).float()
        zero = float((flat.tensors["readout_zero"] / gap).mean())
        tensors = {
            "window_query": (self._direction[list(layers)].float() / length[:, None])[:, None],
            "window_value": (flat.tensors["readout_weight"] / gap[:, None])[:, None],
            "window_bias": torch.zeros(len(layers)),
        }
        windows = Windows(layers=layers, heads=1, width=8, first=2, zero=zero, gap=1.0)
        return flat.revised(tensors=flat.tensors | tensors, windows=windows)

    def steered(
        self, read: Sequence[int] | None = None, steer: int | None = None, **steering: Any
    ) -> Steered:
        """The text with the highest score is to be moved by `MOVE` gaps, and no other."""
        layer = self.steer if steer is None else steer
        flat = self.artefact(read, layer)
        (row, gate), scores = self.split(flat), self.scores(flat, self.texts)
        gain = MOVE / (scores[row] - gate)
        artefact = self.artefact(read, layer, gain=gain, **steering)
        vectors = torch.zeros(len(scores), self.loaded.d_model, dtype=torch.float64)
        vectors[row] = reference.edit(artefact, scores[row], gate)
        return Steered(artefact, rules(steer=gate), row, vectors)

    def split(self, artefact: Artefact) -> tuple[int, float]:
        """Which text has the highest score, and a threshold between it and the others."""
        scores = self.scores(artefact, self.texts)
        order = sorted(range(len(scores)), key=scores.__getitem__)
        return order[-1], (scores[order[-1]] + scores[order[-2]]) / 2

    def scores(self, artefact: Artefact, asks: Sequence[Ask]) -> list[float]:
        """Reference scores."""
        return [reference.score(artefact, ask.states, ask.request.offset_kind) for ask in asks]

    def answers(
        self, encoded: Encoded, artefact: Artefact, policy: Policy, *, tokens: int = TOKENS
    ) -> list[RowOutcome]:
        """Answer a batch as a guard does, greedily."""
        detector = Detector.from_artefact(artefact, policy)
        greedy = Settings(max_new_tokens=tokens, do_sample=False)
        return generate_rows(self.loaded, encoded, detector, greedy, policy=policy)

    def rulings(self, encoded: Encoded, artefact: Artefact, policy: Policy) -> list[Ruling]:
        """Judge a batch without answering."""
        detector = Detector.from_artefact(artefact, policy)
        return check_rows(self.loaded, encoded, detector, policy=policy)

    @property
    def relative(self) -> float:
        """The share of a value's size by which two ways of computing it may differ."""
        return _RELATIVE.get(self.model.dtype, 3e-2)

    def tolerance(self, artefact: Artefact, asks: Sequence[Ask]) -> float:
        """How far two computations of one score may lie apart in this dtype."""
        layers = list(artefact.header.readout.layers)
        return self.slack(artefact, torch.stack([ask.states[layers] for ask in asks]))

    def slack(self, artefact: Artefact, states: Tensor) -> float:
        """The same for scores of residuals (n, k, d_model) of the readout's layers."""
        length = states.norm(dim=-1) / artefact.tensors["readout_gap"].double()
        return 4 * self.relative * float(length.max()) / math.sqrt(self.loaded.d_model)

    def effect(self, artefact: Artefact, ask: Ask, other: Ask) -> float:
        """How far apart the scores of two requests are that differ in their media alone.

        In units of the tolerance: a comparison of scores sees no media below 1. A model that reads
        letters alone may see nothing in noise.
        """
        one, two = self.scores(artefact, [ask, other])
        return abs(one - two) / self.tolerance(artefact, [ask])


def rules(
    *,
    steer: float = NEVER,
    flag: float = NEVER,
    actions: frozenset[Action] = frozenset({Action.STEER, Action.FLAG}),
    only: Modality | None = None,
) -> Policy:
    """A policy with fixed thresholds for all modalities, or for one that the others never reach."""
    never, both = Thresholds(steer=NEVER, flag=NEVER), Thresholds(steer=min(steer, flag), flag=flag)
    thresholds = {m: both if only in (None, m) else never for m in Modality}
    return Policy(thresholds=thresholds, actions=actions)


def score_of(ruling: Ruling) -> float:
    """The score behind a ruling.

    Raises:
        DetectorError: there is none.
    """
    decision = ruling.decision
    if ruling.failed or decision is None:
        raise DetectorError("the detector failed on a row that has a score")
    scores: list[float] = getattr(decision, "scores").tolist()  # noqa: B009 - of our own detector
    return scores[ruling.row]


def found_in(ruling: Ruling) -> float:
    """The score of what was read beside the last position; -inf where nothing was.

    Raises:
        DetectorError: there is none.
    """
    if ruling.failed:
        raise DetectorError(
            "what stands before the last position was not read; some models run their last layers "
            "at that one alone"
        )
    return -math.inf if ruling.found is None else ruling.found.score
