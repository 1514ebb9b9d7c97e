"""Residuals at the last prompt position, for many prompts, resumable."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import version
from typing import TYPE_CHECKING, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from guardrail.artefact.file import write_atomically
from guardrail.inputs.messages import request_digest
from guardrail.model.encode import Encoder
from guardrail.model.prefix import SharedPrefix
from guardrail.types import ImagePart, Message, Request, TextPart

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

    from guardrail.model.load import LoadedModel

log = logging.getLogger(__name__)

# Residuals of one version of these are not those of another.
VERSIONS = {name: version(name) for name in ("torch", "transformers")}

Progress = Callable[[str, int, int], None]
T = TypeVar("T")


def text_request(text: str, *, images: Sequence[Image.Image] = ()) -> Request:
    """One user turn: the pictures, then the text."""
    pictures = [ImagePart(image) for image in images]
    return Request((Message(role="user", parts=(*pictures, TextPart(text))),))


class Collector:
    """Reads every layer's residual at the last prompt position: n requests -> (n, L, d_model).

    Requests are sorted by length so that a batch is padded little, and only the last position is
    kept, so memory does not grow with prompt length. With a `work_dir` each batch is written as it
    is done; the next run with the same model and prompts reads it back instead.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        *,
        batch_size: int = 16,
        work_dir: Path | None = None,
        key: str = "",
        progress: Progress | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        self.loaded, self.encoder = loaded, Encoder(loaded)
        self._prefix = SharedPrefix(loaded, self.encoder)
        self.batch_size = batch_size
        self.work_dir, self.key = work_dir, key
        self.progress = progress or (lambda _stage, _done, _total: None)

    def __call__(self, requests: Sequence[Request], stage: str) -> Tensor:
        """Residuals of all layers, (n, L, d_model) float32 on the CPU, in the requests' order."""
        return torch.stack(self.each(requests, self._read, stage))

    def each(
        self,
        requests: Sequence[Request],
        ask: Callable[[list[Request]], Iterable[T]],
        stage: str = "",
    ) -> list[T]:
        """What `ask` gives for each request: asked in batches, told in the requests' order.

        Without a `stage` no progress is told.
        """
        found: dict[int, T] = {}
        for batch in self.batches(requests):
            found.update(zip(batch, ask([requests[i] for i in batch]), strict=True))
            if stage:
                self.progress(stage, len(found), len(requests))
        return [found[i] for i in range(len(requests))]

    def batches(self, requests: Sequence[Request]) -> Iterator[list[int]]:
        """Places of the requests, grouped by pictures and frames, then by length of text.

        Videos are fewer in a batch, so that it holds no more frames than `batch_size`.
        """
        most = 1 if not self.encoder.can_batch else self.batch_size

        def text_length(i: int) -> int:
            parts = (p for m in requests[i].messages for p in m.parts)
            return sum(len(p.text) for p in parts if isinstance(p, TextPart))

        groups: dict[tuple[int, tuple[int, ...]], list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(request.shape, []).append(i)
        for (_, frames), places in groups.items():
            size = max(1, most // max(1, sum(frames)))
            places.sort(key=text_length)
            for start in range(0, len(places), size):
                yield places[start : start + size]

    def _read(self, requests: Sequence[Request]) -> Tensor:
        path = None if self.work_dir is None else self.work_dir / f"{self._digest(requests)}.part"
        if path is not None and path.exists():
            try:
                return load_file(path)["residuals"]
            except (SafetensorError, KeyError, OSError):
                log.warning("%s is damaged; its batch is read again", path)
        residuals = self._prefix.residuals(self.encoder.encode(requests))
        if path is not None:
            write_atomically(path, save({"residuals": residuals.contiguous()}))
        return residuals

    def _digest(self, requests: Sequence[Request]) -> str:
        """Of the model and of everything in the batch, pictures included."""
        digest = hashlib.sha256(f"{VERSIONS}{self.key}".encode())
        for request in requests:
            digest.update(request_digest(request).encode())
        return digest.hexdigest()[:32]
