"""Residuals of many chats, kept by content, so that a run goes on where the last one ended."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save

from guardrail.artefact.file import write_atomically
from guardrail.inputs.messages import request_digest, to_request
from guardrail.model.encode import Encoder
from guardrail.model.fingerprint import fingerprint
from guardrail.model.load import LoadedModel
from guardrail.model.prefix import SharedPrefix
from guardrail.policy import Policy
from guardrail.types import Request

BATCH = 8
Chat = list[dict[str, object]]


@dataclass(frozen=True)
class Read:
    """Residuals (n, k, d_model) float32, each request's offset kind, and its tokens, (n,)."""

    residuals: torch.Tensor
    kinds: list[str]
    tokens: torch.Tensor


class Reader:
    """Reads `layers` at the last prompt position of chats that may begin alike.

    What the chats of one call have in common at their start is run once.
    """

    def __init__(self, loaded: LoadedModel, layers: Sequence[int], folder: Path) -> None:
        self.loaded, self.layers, self.folder = loaded, tuple(layers), folder
        self.encoder = Encoder(loaded)
        self._key = f"{fingerprint(loaded).model_dump_json()}{torch.__version__}{self.layers}"
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, asks: Sequence[Callable[[], Chat]]) -> Read:
        """Read chats, which are made when their batch is: no more pictures are held than it has."""
        prefix: SharedPrefix | None = None
        found: list[dict[str, torch.Tensor]] = []
        kinds: list[str] = []
        for start in range(0, len(asks), BATCH):
            requests = [to_request(ask(), policy=Policy()) for ask in asks[start : start + BATCH]]
            kinds += [request.offset_kind for request in requests]
            path = self.folder / f"{self._digest(requests)}.safetensors"
            if not path.exists():
                prefix = prefix or self._prefix(requests)
                encoded = self.encoder.encode(requests)
                residuals = prefix.residuals(encoded).contiguous()
                read = {"residuals": residuals, "tokens": torch.tensor(encoded.lengths)}
                write_atomically(path, save(read))
            found.append(load_file(path))
        residuals, tokens = (
            torch.cat([batch[name] for batch in found]) for name in ("residuals", "tokens")
        )
        return Read(residuals, kinds, tokens)

    def _prefix(self, requests: Sequence[Request]) -> SharedPrefix:
        alike = () if any(request.images for request in requests) else requests
        return SharedPrefix(self.loaded, self.encoder, alike=alike, layers=self.layers)

    def _digest(self, requests: Sequence[Request]) -> str:
        digest = hashlib.sha256(self._key.encode())
        for request in requests:
            digest.update(request_digest(request).encode())
        return digest.hexdigest()[:32]
