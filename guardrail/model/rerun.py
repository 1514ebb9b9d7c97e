"""Running some layers a second time, with an edit that was decided too late for the first time.

Where the edit layer lies before the readout, its output is remembered, and the layers between them
run again once a row is to be steered: with the arguments they had, on the cache as it was, over
all positions of the pass. So nothing has to be known about masks, positions or kinds of cache; a
pass in which nobody is steered only keeps a few references. `Span` is such a stretch of layers,
`LayerState` what a layer of the cache held before.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import cache_utils

from guardrail.errors import DetectorError
from guardrail.model.decoder import hidden_of, passed_cache

if TYPE_CHECKING:
    from collections.abc import Mapping

# How far a repeated residual may be from the first one, relative; the second is for half precision.
TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-3}
HALF_TOLERANCE = 3e-2

# Layers of a cache that put a new tensor in the old one's place, and so never change one.
_REPLACING = (cache_utils.DynamicLayer, cache_utils.DynamicSlidingWindowLayer)

# Layers that write into their tensors, but over all that counts when the first positions come in.
_OVERWRITING = tuple(
    getattr(cache_utils, name)
    for name in ("StaticLayer", "StaticSlidingWindowLayer", "LinearAttentionLayer")
    if hasattr(cache_utils, name)
)


class Span:
    """The layers after the edit up to the last readout, as they ran in one forward pass."""

    def __init__(self, index: int, *, empty: bool) -> None:
        """`index` is the edited position's, from the end; `empty`: the cache held nothing yet."""
        self._index, self._empty = index, empty
        self._start: Tensor | None = None
        self._seen_at_start: Tensor | None = None
        self._runs: dict[int, _Run] = {}
        self._before: dict[int, LayerState] = {}
        self._caches: dict[int, Any] = {}
        self._lacking: dict[int, Any] = {}
        self._latest: tuple[int, Tensor] | None = None
        self._trouble = "the steering layer never ran"

    @property
    def residual(self) -> Tensor | None:
        """What the edit layer gave at the position, (rows, d_model); None if it never ran."""
        return self._seen_at_start

    @property
    def start(self) -> Tensor:
        """What the edit layer gave, (rows, length, d_model).

        Raises:
            DetectorError: it never ran.
        """
        if self._start is None:
            raise DetectorError(self._trouble)
        return self._start

    def begin(self, layer: int, hidden: Tensor) -> None:
        """The edit layer gave `hidden` (rows, length, d_model)."""
        self._start, self._seen_at_start = hidden, hidden[:, self._index].detach().clone()
        self._latest, self._trouble = (layer, hidden), ""

    def entered(
        self, layer: int, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        """A later layer is about to run: note its arguments and what its cache holds."""
        if self._latest is None:
            return
        before, output = self._latest
        named = dict(kwargs)
        given = args[0] if args else named.pop("hidden_states", None)
        added = None
        if given is not output:
            if before != layer - 1:
                self._trouble = f"layers between {before} and {layer} ran where no hook runs"
                return
            if not _comparable(given, output):
                self._trouble = f"layer {layer} is not given what the layer before it gave"
                return
            added = given - output[:, -given.shape[1] :]
        self._runs[layer] = _Run(module, args[1:] if args else None, named, added)
        cache = passed_cache((*args, *named.values()))
        if cache is not None:
            self._remember(layer, cache)

    def left(self, layer: int, hidden: Tensor) -> None:
        """That layer has run and gave `hidden`."""
        if self._latest is not None:
            self._latest = (layer, hidden)

    def again(self, edited: Tensor, steered: Tensor) -> Tensor:
        """Run the layers again from `edited`: (rows, length, d_model); what the last one gives.

        Rows that are not `steered` (rows,) bool keep what they had. The run is checked: what the
        edit cannot reach must come out as before. Where that shows nothing (positions that see
        later ones, or a prompt of a single token), a run without the edit must repeat the first.

        Raises:
            DetectorError: the layers do not repeat themselves. The cache is as the first pass left
                it then.
        """
        start, first = self.start, self._checked()
        after = [LayerState(cache.layers[i], empty=False) for i, cache in self._caches.items()]
        shared = [(said, dict(said)) for run in self._runs.values() for said in run.shared]
        rows = steered.to(first.device)
        try:
            new = self._run(edited)
            if not self._is_repeated(new, first, rows):
                if not _close(self._run(start), first):
                    raise DetectorError("layers of this model give something else when run again")
                new = self._run(edited)
                if not bool(rows.all()) and not _close(new[~rows], first[~rows]):
                    raise DetectorError("an edit of one row of this model changes other rows")
            if not bool(new[rows, self._index].isfinite().all()):
                raise DetectorError("the edit leaves no finite residual at the readout layer")
        except Exception:
            for state in after:
                state.put_back()
            for said, held in shared:
                said.clear()
                said.update(held)
            raise
        return torch.where(rows[:, None, None], new, first)

    def _checked(self) -> Tensor:
        """What the last layer gave, if the run can be repeated at all."""
        if self._trouble or self._latest is None or self._seen_at_start is None:
            raise DetectorError(self._trouble)
        seen = self.start[:, self._index].nan_to_num()
        if not torch.equal(seen, self._seen_at_start.nan_to_num()):
            raise DetectorError("the model writes over what its steering layer gave")
        for layer, cache in self._lacking.items():
            if layer < len(cache.layers):
                raise DetectorError(f"the cache had no part of layer {layer} before it ran")
        for layer, run in self._runs.items():
            if run.added is not None and bool(run.added[:, self._index].any()):
                raise DetectorError(f"the model changes the residual stream before layer {layer}")
        return self._latest[1]

    def _run(self, hidden: Tensor) -> Tensor:
        lengths = {i: _length(cache.layers[i]) for i, cache in self._caches.items()}
        for state in self._before.values():
            state.put_back()
        for layer in sorted(self._runs):
            hidden = self._runs[layer].again(hidden)
        for i, cache in self._caches.items():
            if _length(cache.layers[i]) != lengths[i]:
                raise DetectorError(f"the cache of layer {i} cannot be taken back")
        return hidden

    def _is_repeated(self, new: Tensor, first: Tensor, rows: Tensor) -> bool:
        """Whether all that the edit cannot reach is as before; false if that is nothing."""
        if new.shape[1] + self._index == 0 and bool(rows.all()):
            return False
        earlier = _close(new[:, : self._index], first[:, : self._index])
        return earlier and (bool(rows.all()) or _close(new[~rows], first[~rows]))

    def _remember(self, layer: int, cache: Any) -> None:
        layers = getattr(cache, "layers", None)
        if not isinstance(layers, list):
            self._trouble = f"the cache ({type(cache).__name__}) has no parts of layers"
            return
        if layer >= len(layers):  # the layer uses what another one keeps, or its part comes now
            self._lacking[layer] = cache
            return
        self._caches[layer] = cache
        self._before[layer] = LayerState(layers[layer], empty=self._empty)


@dataclass(frozen=True, slots=True)
class _Run:
    """A layer as it ran, but for the residual stream: one per layer would fill the memory.

    `added` is what the decoder put between it and the layer before; `args` None: all by name.
    """

    module: nn.Module
    args: tuple[Any, ...] | None
    kwargs: Mapping[str, Any]
    added: Tensor | None

    @property
    def shared(self) -> list[MutableMapping[Any, Any]]:
        """What layers tell later ones beside the cache (keys and values that several use)."""
        return [value for value in self.kwargs.values() if isinstance(value, MutableMapping)]

    def again(self, hidden: Tensor) -> Tensor:
        given = hidden
        if self.added is not None:  # as long as what the layer was given, which may be less
            given = hidden[:, -self.added.shape[1] :] + self.added
        if self.args is None:
            return hidden_of(self.module(hidden_states=given, **self.kwargs))
        return hidden_of(self.module(given, *self.args, **self.kwargs))


class LayerState:
    """What one layer of a cache holds at a moment, so that it can be put back.

    Tensors are copied only where later passes write into them, so that remembering the state before
    a prompt costs next to nothing.
    """

    def __init__(self, layer: Any, *, empty: bool) -> None:
        """Remember `layer`; `empty` says that it has seen no position yet."""
        self._layer = layer
        self._replaces = type(layer) in _REPLACING
        self._written = not (self._replaces or (empty and type(layer) in _OVERWRITING))
        self._values = {name: self._kept(value) for name, value in vars(layer).items()}

    def put_back(self) -> None:
        """Give the layer back what it held, in the tensors that held it."""
        current = vars(self._layer)
        for name in set(current) - set(self._values):
            del current[name]
        for name, kept in self._values.items():
            current[name] = _restored(kept)

    def _kept(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            counts = value.dim() == 0 and not self._replaces  # a counter, advanced in place
            return _Kept(value, value.clone() if self._written or counts else None)
        if isinstance(value, dict):
            return {key: self._kept(item) for key, item in value.items()}
        return list(value) if isinstance(value, list) else value


class _Kept(NamedTuple):
    """A tensor and, where it may be written into, a copy of what stood in it."""

    tensor: Tensor
    kept: Tensor | None


def _restored(kept: Any) -> Any:
    if isinstance(kept, _Kept):
        return kept.tensor if kept.kept is None else kept.tensor.copy_(kept.kept)
    if isinstance(kept, dict):
        return {key: _restored(item) for key, item in kept.items()}
    return list(kept) if isinstance(kept, list) else kept


def _comparable(given: Any, output: Tensor) -> bool:
    """Whether `given` may be the last positions of `output` with something added to them."""
    return (
        isinstance(given, Tensor)
        and given.dim() == 3
        and 0 < given.shape[1] <= output.shape[1]
        and given.shape[::2] == output.shape[::2]
        and given.device == output.device
    )


def _length(layer: Any) -> int | None:
    """Positions in a layer of a cache; None where it counts none."""
    count = getattr(layer, "get_seq_length", None)
    return None if count is None else int(count())


def _close(new: Tensor, old: Tensor) -> bool:
    """Whether every residual is the same but for rounding; what is not finite must stay so.

    A position's own length is the measure, or the usual one of its row where that is larger.
    """
    if old.numel() == 0 or torch.equal(new, old):
        return True
    if not torch.equal(new.isfinite(), old.isfinite()):
        return False
    was, now = (x.nan_to_num(0.0, 0.0, 0.0).float() for x in (old, new))
    length = was.norm(dim=-1)
    allowed = TOLERANCE.get(old.dtype, HALF_TOLERANCE) * length.maximum(
        length.median(dim=-1, keepdim=True).values
    )
    return bool(((now - was).norm(dim=-1) <= allowed).all())
