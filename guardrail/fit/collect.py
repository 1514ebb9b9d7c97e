"""Residuals of many prompts, resumable: at the last position, and of the tokens of their parts."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from guardrail.artefact.file import write_atomically
from guardrail.decide.detector import KINDS
from guardrail.decide.reading import TokenReading
from guardrail.inputs.messages import request_digest
from guardrail.model.encode import Encoder
from guardrail.model.generate import last_residuals
from guardrail.model.prefix import SharedPrefix
from guardrail.types import ImagePart, Message, Request, TextPart

if TYPE_CHECKING:
    from pathlib import Path

    from PIL import Image

    from guardrail.decide.reading import Found
    from guardrail.model.encode import Encoded
    from guardrail.model.load import LoadedModel

log = logging.getLogger(__name__)

# Residuals of one version of these are not those of another.
VERSIONS = {name: version(name) for name in ("torch", "transformers")}

LAST_DEPTH = 0.75  # share of the layers behind which nothing is read or edited
TOKEN_DEPTHS = (0.47, 0.57, 0.67)  # where harmfulness shows most; later ones add nothing
JUDGED = frozenset({"user", "tool"})  # as a policy's defaults judge
Progress = Callable[[str, int, int], None]
T = TypeVar("T")


def text_request(text: str, *, images: Sequence[Image.Image] = ()) -> Request:
    """One user turn: the pictures, then the text."""
    pictures = [ImagePart(image) for image in images]
    return Request((Message(role="user", parts=(*pictures, TextPart(text))),))


@dataclass(frozen=True)
class Read:
    """What was read of one prompt, on the CPU.

    `last` is (L, d_model) float32, of the last position; `headers` (h, L, d_model) of earlier
    answers' headers, `kinds` the kinds of what stood before each. `tokens` are (n, k, d_model)
    float16, of the judged messages in order, `lengths` how many each of them has, `layers` the k
    layers. `own` (h + 1,) says how many tokens are read of the message before each header, and of
    the last one.
    """

    last: Tensor
    headers: Tensor
    kinds: tuple[str, ...]
    tokens: Tensor
    lengths: tuple[int, ...]
    layers: tuple[int, ...]
    own: tuple[int, ...]


class Collector:
    """Reads residuals at the last prompt position: n requests -> (n, L, d_model).

    Those of the last quarter of the layers, where nothing is read or edited, are NaN.

    `read` gives the tokens' residuals, too, at the `token_layers`, of messages of `judged` roles.

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
        judged: frozenset[str] = JUDGED,
        progress: Progress | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}")
        self.loaded, self.encoder = loaded, Encoder(loaded)
        self.whole_layers = whole_layers(loaded, self.encoder.encode([text_request("a b c")]))
        self.token_layers = token_layers(self.whole_layers, loaded.layer_count)
        # Nothing is read or edited behind these: the rest of a pass would be for nothing.
        depth = max(int(LAST_DEPTH * loaded.layer_count), self.token_layers[-1] + 1)
        self._layers = tuple(range(depth))
        self._prefix = SharedPrefix(loaded, self.encoder, layers=self._layers)
        self.batch_size = batch_size
        self.work_dir, self.key, self.judged = work_dir, key, judged
        self.progress = progress or (lambda _stage, _done, _total: None)

    def __call__(self, requests: Sequence[Request], stage: str) -> Tensor:
        """Residuals of all layers, (n, L, d_model) float32 on the CPU, in the requests' order."""
        return torch.stack([read.last for read in self.read(requests, stage)])

    def read(self, requests: Sequence[Request], stage: str) -> list[Read]:
        """Everything that a fit needs of the prompts, in the requests' order."""
        return self.each(requests, self._read, stage)

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
        """Places of the requests, grouped by pictures, frames and tools, then by tokens of text.

        Those with a system prompt are apart, as the others begin alike (see `SharedPrefix`).
        Videos are fewer in a batch, so that it holds no more frames than `batch_size`.
        """
        most = 1 if not self.encoder.can_batch else self.batch_size

        def text_length(i: int) -> int:
            parts = (p for m in requests[i].messages for p in m.parts)
            texts = [p.text for p in parts if isinstance(p, TextPart)]
            return len(self.loaded.tokenizer.tokenize("\n".join(texts)))

        groups: dict[tuple[tuple[int, ...], int, str, bool], list[int]] = {}
        for i, request in enumerate(requests):
            images, frames = request.shape
            ruled = request.messages[0].role == "system"
            groups.setdefault((frames, images, json.dumps(request.tools), ruled), []).append(i)
        for (frames, *_), places in groups.items():
            size = max(1, most // max(1, sum(frames)))
            places.sort(key=text_length)
            for start in range(0, len(places), size):
                yield places[start : start + size]

    def _read(self, requests: Sequence[Request]) -> list[Read]:
        path = None if self.work_dir is None else self.work_dir / f"{self._digest(requests)}.part"
        if path is not None and path.exists():
            try:
                return _unpacked(load_file(path), self.token_layers)
            except (SafetensorError, KeyError, OSError):
                log.warning("%s is damaged; its batch is read again", path)
        packed = self._ask(requests)
        if path is not None:
            write_atomically(path, save(packed))
        return _unpacked(packed, self.token_layers)

    def _ask(self, requests: Sequence[Request]) -> dict[str, Tensor]:
        encoded = self.encoder.encode(requests)

        def reading(prompt_len: int) -> TokenReading:
            return TokenReading(
                rows=encoded.parts,
                judged=self.judged,
                prompt_len=prompt_len,
                layers=self._layers,
                token_layers=self.token_layers,
            )

        seen, read = self._prefix.residuals(encoded, reading)
        last = seen.new_full((len(seen), self.loaded.layer_count, seen.shape[-1]), torch.nan)
        last[:, : seen.shape[1]] = seen
        return {"last": last.contiguous(), **_packed(read, last)}

    def _digest(self, requests: Sequence[Request]) -> str:
        """Of the model and of everything in the batch, pictures included."""
        roles = "" if self.judged == JUDGED else sorted(self.judged)
        digest = hashlib.sha256(f"{VERSIONS}{self.key}{roles}".encode())
        for request in requests:
            digest.update(request_digest(request).encode())
        return digest.hexdigest()[:32]


def token_layers(whole: Sequence[int], count: int) -> tuple[int, ...]:
    """Those of `whole` nearest to `TOKEN_DEPTHS` of `count` layers."""
    return tuple(
        sorted({min(whole, key=lambda i: (abs(i - int(d * count)), i)) for d in TOKEN_DEPTHS})
    )


class _Lengths:
    """A reading of how many positions each layer gives."""

    def __init__(self, layers: Iterable[int]) -> None:
        self.layers, self.seen = tuple(layers), dict[int, int]()

    def attends(self, mask: Tensor) -> None:
        """Of no matter here."""

    def see(self, layer: int, hidden: Tensor, first: int) -> None:
        """Count them."""
        self.seen[layer] = hidden.shape[1]

    def found(self) -> list[Found]:
        """Nothing is judged."""
        return []


def whole_layers(loaded: LoadedModel, encoded: Encoded) -> tuple[int, ...]:
    """The layers that run at every position of a text prompt.

    Some models run their last layers on the last position alone, which is all that generation asks
    for, and cross-attention layers do not run without a picture.
    """
    reading = _Lengths(range(loaded.layer_count))
    last_residuals(loaded, encoded, reading=reading)
    return tuple(i for i, length in reading.seen.items() if length == encoded.prompt_len)


def _packed(read: TokenReading, last: Tensor) -> dict[str, Tensor]:
    """A batch's readings as tensors; what a layer that did not run would give is NaN."""
    rows, layers, width = last.shape
    spans, headers = [row for row, _ in read.spans()], [row for row, _, _ in read.headers()]
    tokens = torch.stack(
        [torch.cat([torch.zeros(0, width).half(), *read.tokens[i]]) for i in read.token_layers], 1
    )
    kinds = [list(KINDS).index(header.kind) for _, _, header in read.headers()]
    heads = torch.full((len(headers), layers, width), torch.nan)
    for layer, found in read.heads.items():
        if found:
            heads[:, layer] = torch.stack(found)
    lengths = [len(one) for one in read.tokens[read.token_layers[0]]]
    own: list[list[int]] = [[] for _ in range(rows)]
    for row, _, header in read.headers():
        own[row].append(read.tokens_of(row, header.message - 1))
    ends = [count for row, of in enumerate(own) for count in (*of, read.tokens_of_last(row))]
    return {
        "tokens": tokens.contiguous(),
        "headers": heads,
        "kinds": torch.tensor(kinds, dtype=torch.long),
        "lengths": torch.tensor(lengths, dtype=torch.long),
        "spans": torch.bincount(torch.tensor(spans, dtype=torch.long), minlength=rows),
        "turns": torch.bincount(torch.tensor(headers, dtype=torch.long), minlength=rows),
        "own": torch.tensor(ends, dtype=torch.long),
    }


def _unpacked(packed: dict[str, Tensor], layers: tuple[int, ...]) -> list[Read]:
    lengths = [
        tuple(some.tolist()) for some in torch.split(packed["lengths"], packed["spans"].tolist())
    ]
    tokens = torch.split(packed["tokens"], [sum(some) for some in lengths])
    turns = packed["turns"].tolist()
    headers, kinds = (torch.split(packed[name], turns) for name in ("headers", "kinds"))
    own = [tuple(some.tolist()) for some in torch.split(packed["own"], [n + 1 for n in turns])]
    names = list(KINDS)
    rows = zip(packed["last"], headers, kinds, tokens, lengths, own, strict=True)
    return [
        Read(last, heads, tuple(names[i] for i in of.tolist()), some, sizes, layers, ends)
        for last, heads, of, some, sizes, ends in rows
    ]
