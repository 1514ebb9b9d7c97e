"""Every reading of a request in one prefill, and a scorer that attackers may ask.

A guard scores a request by the highest of several readings. What each of them alone would have said
is read in the same pass, so that an attack can be held against all of them at once:

- `last`: the readout at the last position, the detector of old.
- `turns`: the highest of that and of the ends of all earlier turns.
- `windows`: the highest window over any judged message; the last position where there is none.
- `joint`: what the guard itself scores.
- `ensemble`: as `joint`, with windows whose layers are judged one by one, and the mean of their
  highest instead of the highest of their mean.
- `folded`: the highest of `joint` for the request and for its copy in plain letters, as `check`
  judges what another model will answer.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from guardrail.decide.detector import Detector
from guardrail.decide.reading import NOTHING, Found, PartsReading
from guardrail.errors import ConfigurationError, DetectorError
from guardrail.evaluation.answers import BoundedEncoder
from guardrail.evaluation.cache import key_of
from guardrail.evaluation.inputs import INPUT_ERRORS, input_digest
from guardrail.evaluation.measuring import Keys
from guardrail.inputs.folding import folded
from guardrail.model.prefix import SharedPrefix

if TYPE_CHECKING:
    from collections.abc import Sequence

    from guardrail.decide.windows import WindowReadout
    from guardrail.evaluation.cache import Cache
    from guardrail.guard import Guard
    from guardrail.model.encode import Encoded
    from guardrail.types import Request

ReadingName = Literal["last", "turns", "windows", "joint", "ensemble", "folded"]
READINGS: tuple[ReadingName, ...] = ("last", "turns", "windows", "joint", "ensemble", "folded")
_WITHOUT_WINDOWS: tuple[ReadingName, ...] = ("last", "turns", "joint", "folded")


@dataclass(frozen=True, slots=True)
class Scores:
    """What one request scored by each reading, and its offset kind; `problem` if it could not be.

    A request that the model cannot be shown at all is no success of an attacker.
    """

    by: dict[str, float]
    kind: str = "text"
    problem: str = ""


@dataclass(kw_only=True)
class EveryReading(PartsReading):
    """The products of judged tokens and the residuals at earlier headers, of one batch."""

    detector: Detector
    _products: dict[int, list[Tensor]] = field(default_factory=dict)
    _heads: dict[int, list[Tensor]] = field(default_factory=dict)

    @property
    def layers(self) -> tuple[int, ...]:
        """All that the detector reads."""
        return self.detector.reads

    def see(self, layer: int, hidden: Tensor, first: int) -> None:
        """Layer `layer` gave `hidden` (rows, length, d_model), from position `first` on."""
        hidden = self.first_of_each(hidden, first)
        windows = self.detector.windows
        if windows is not None and layer in windows.layers:
            products = windows.products(layer, hidden).cpu()
            found = []
            for row, turn in self.spans():
                places = self.places(row, turn) - first
                if places.numel() and int(places.min()) < 0:
                    raise DetectorError("a prompt was not read from its first judged token on")
                found.append(products[row, places])
            self._products[layer] = found
        if layer in self.detector.layers:
            self._heads[layer] = [
                hidden[row, at - first].to("cpu", torch.float32, copy=True)
                for row, at, _ in self.headers()
            ]

    def found(self) -> list[Found]:
        """Nothing is decided here."""
        return [NOTHING] * len(self.rows)

    def scores(self, last: Tensor, kinds: Sequence[str]) -> list[dict[str, float]]:
        """By row and reading, of residuals (rows, k, d_model) at the readout's layers."""
        at_end = self.detector.readout.scores(last, kinds).tolist()
        ends = self._ends()
        return [self._row(row, score, ends[row]) for row, score in enumerate(at_end)]

    def _row(self, row: int, last: float, ends: list[tuple[float, bool]]) -> dict[str, float]:
        windows, each = self._windows(row)
        counts = not self._suffices(self.tokens_of_last(row))
        joint = [score for score, suffices in ends if not suffices] + [last] * counts
        return {
            "last": last,
            "turns": _highest([last, *(score for score, _ in ends)]),
            "windows": last if windows == -math.inf else windows,
            "joint": _highest([windows, *joint]),
            "ensemble": _highest([each, *joint]),
        }

    def _suffices(self, tokens: int) -> bool:
        windows = self.detector.windows
        return windows is not None and windows.suffice(tokens)

    def _windows(self, row: int) -> tuple[float, float]:
        """The highest window of a row, and the mean over layers of each one's highest."""
        windows = self.detector.windows
        if windows is None:
            return -math.inf, -math.inf
        highest, layers = [-math.inf], [-math.inf]
        for place, (of, _) in enumerate(self.spans()):
            products = [self._products[layer][place] for layer in windows.layers]
            if of == row and len(products[0]) >= windows.first:
                highest.append(float(windows.scores(torch.stack(products, dim=1)).max()))
                alone = (
                    float(one_layer(windows, at).scores(part[:, None]).max())
                    for at, part in enumerate(products)
                )
                layers.append(sum(alone) / len(products))
        return _highest(highest), _highest(layers)

    def _ends(self) -> list[list[tuple[float, bool]]]:
        """By row: what each earlier turn scored at its end, and whether its windows suffice."""
        found: list[list[tuple[float, bool]]] = [[] for _ in self.rows]
        headers = list(self.headers())
        if headers:
            layers = [torch.stack(self._heads[layer]) for layer in self.detector.layers]
            kinds = [header.kind for _, _, header in headers]
            scores = self.detector.readout.scores(torch.stack(layers, dim=1), kinds).tolist()
            for (row, _, header), score in zip(headers, scores, strict=True):
                found[row].append((score, self._suffices(self.tokens_of(row, header.message - 1))))
        return found


def _highest(scores: Sequence[float]) -> float:
    """The highest score; NaN where one is, as a reading that failed is no low score."""
    return math.nan if any(map(math.isnan, scores)) else max(scores)


def one_layer(windows: WindowReadout, at: int) -> WindowReadout:
    """The readout of one of a window readout's layers, on the scale of all of them."""
    return replace(
        windows,
        layers=windows.layers[at : at + 1],
        query=windows.query[at : at + 1],
        value=windows.value[at : at + 1],
        bias=windows.bias[at : at + 1],
    )


class Reader:
    """Reads requests as a guard does, in batches; what was read before comes from the cache."""

    def __init__(self, guard: Guard, cache: Cache, *, batch_size: int = 16) -> None:
        self.guard, self.batch_size = guard, batch_size
        self.detector = Detector.from_artefact(guard.artefact, guard.policy)
        self.encoder = BoundedEncoder(guard.loaded, guard.policy.limits)
        self._cache, self._keys = cache, Keys.of(guard)
        self._prefix = SharedPrefix(guard.loaded, self.encoder, layers=self.detector.reads)

    @property
    def names(self) -> tuple[ReadingName, ...]:
        """The readings that this artefact has."""
        return READINGS if self.detector.windows is not None else _WITHOUT_WINDOWS

    @property
    def identity(self) -> str:
        """Names the model and what the guard reads of it."""
        return key_of("attack", self._keys.model, self._keys.reader)

    def __call__(self, requests: Sequence[Request]) -> list[Scores]:
        """The scores of any requests, in order.

        Raises:
            ConfigurationError: a request holds a long video, or several.
        """
        if any(request.in_windows for request in requests):
            raise ConfigurationError(
                "an attack takes no request with a long video or several: they are judged window "
                "by window; leave them out, or cut a clip"
            )
        copies = [folded(request) for request in requests]
        asked = {self._key(one): one for one in [*requests, *copies] if one is not None}
        known = {key: _unpacked(data) for key, data in self._cache.get(list(asked)).items()}
        groups: dict[tuple[object, str, bool], list[str]] = {}
        for key, request in asked.items():
            if key not in known:
                ruled = request.messages[0].role == "system"
                shape = request.shape, json.dumps(request.tools), ruled
                groups.setdefault(shape, []).append(key)
        size = self.batch_size if self.encoder.can_batch else 1
        for group in groups.values():
            group.sort(key=lambda key: len(str(asked[key].messages)))
            for start in range(0, len(group), size):
                part = group[start : start + size]
                read = self._tried([asked[key] for key in part])
                self._cache.put({k: _packed(r) for k, r in zip(part, read, strict=True)})
                known.update(zip(part, read, strict=True))
        return [
            self._with_copy(known[self._key(request)], None if c is None else known[self._key(c)])
            for request, c in zip(requests, copies, strict=True)
        ]

    def _with_copy(self, read: Scores, copy: Scores | None) -> Scores:
        """With the reading that its copy in plain letters takes part in."""
        if read.problem:
            return read
        joint = read.by["joint"]
        highest = joint if copy is None or copy.problem else max(joint, copy.by["joint"])
        return replace(read, by={**read.by, "folded": highest})

    def _key(self, request: Request) -> str:
        return key_of(self.identity, input_digest(request, self.guard.policy))

    def _tried(self, requests: Sequence[Request]) -> list[Scores]:
        """Read a batch; if it fails as a whole, each request alone."""
        try:
            return self._read(requests)
        except INPUT_ERRORS as error:
            if len(requests) == 1:
                said = " ".join(str(error).split())
                return [Scores({}, problem=f"{type(error).__name__}: {said}"[:300])]
            return [one for request in requests for one in self._tried([request])]

    def _read(self, requests: Sequence[Request]) -> list[Scores]:
        encoded = self.encoder.encode(requests)
        residuals, reading = self._prefix.residuals(
            encoded, lambda length: self._reading(encoded, length)
        )
        chosen = [self.detector.reads.index(layer) for layer in self.detector.layers]
        rows = reading.scores(residuals[:, chosen], encoded.kinds)
        found = []
        for by, kind in zip(rows, encoded.kinds, strict=True):
            kept = {str(name): by[name] for name in self.names if name in by}
            if not all(map(math.isfinite, kept.values())):
                raise DetectorError("a score is not finite: the detector failed on this input")
            found.append(Scores(kept, kind))
        return found

    def _reading(self, encoded: Encoded, length: int) -> EveryReading:
        return EveryReading(
            detector=self.detector,
            rows=encoded.parts,
            judged=self.guard.policy.judged_roles,
            prompt_len=length,
            turns=self.detector.turns,
        )


def _packed(read: Scores) -> bytes:
    return json.dumps(asdict(read)).encode()


def _unpacked(data: bytes) -> Scores:
    found: dict[str, Any] = json.loads(data)
    return Scores(**found)
