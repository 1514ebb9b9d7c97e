"""Scores of many chats, kept by content, so that a run goes on where the last one ended."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from guardrail import Artefact, Policy
from guardrail.artefact.file import write_atomically
from guardrail.decide.detector import Decision, Detector
from guardrail.inputs.messages import request_digest, to_request
from guardrail.model.encode import Encoder
from guardrail.model.fingerprint import fingerprint
from guardrail.model.generate import check_rows
from guardrail.model.load import LoadedModel
from guardrail.types import Request

BATCH = 8
Chat = list[dict[str, object]]


@dataclass(frozen=True)
class Read:
    """What one chat scored: by the guard, at its last position alone, where, and its tokens.

    `kind` is that of its pictures, `reading` what the guard's score is from.
    """

    score: float
    last: float
    kind: str
    reading: str
    tokens: int


class Reader:
    """Scores chats as a guard does, in batches."""

    def __init__(self, loaded: LoadedModel, artefact: Artefact, folder: Path) -> None:
        self.loaded, self.folder = loaded, folder
        self.detector = Detector.from_artefact(artefact, Policy(mode="shadow"))
        self.encoder = Encoder(loaded)
        key = (fingerprint(loaded).model_dump_json(), torch.__version__, artefact.artefact_id)
        self._key = " ".join(key)
        folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, asks: Sequence[Callable[[], Chat]]) -> list[Read]:
        """Read chats, which are made when their batch is: no more pictures are held than it has."""
        found: list[Read] = []
        for start in range(0, len(asks), BATCH):
            chats = [ask() for ask in asks[start : start + BATCH]]
            found += self.requests([to_request(chat, policy=Policy()) for chat in chats])
        return found

    def requests(self, requests: Sequence[Request]) -> list[Read]:
        """Score one batch, or find what it scored before."""
        path = self.folder / f"{self._digest(requests)}.json"
        if not path.exists():
            rows = [asdict(read) for read in self._judged(requests)]
            write_atomically(path, json.dumps(rows).encode())
        return [Read(**row) for row in json.loads(path.read_bytes())]

    def _judged(self, requests: Sequence[Request]) -> list[Read]:
        encoded, detector = self.encoder.encode(requests), self.detector
        rulings = check_rows(self.loaded, encoded, detector, policy=detector.policy)
        found = []
        for row, (ruling, kind) in enumerate(zip(rulings, encoded.kinds, strict=True)):
            decision = ruling.decision
            if not isinstance(decision, Decision) or decision.last is None or ruling.failed:
                raise SystemExit("a request has no finite score; is this the artefact's model?")
            score, last = float(decision.scores[row]), float(decision.last[row])
            where = getattr(ruling.found, "where", None)
            reading = "last" if score == last or where is None else str(where.reading)
            found.append(Read(score, last, kind, reading, encoded.lengths[row]))
        return found

    def _digest(self, requests: Sequence[Request]) -> str:
        digest = hashlib.sha256(self._key.encode())
        for request in requests:
            digest.update(request_digest(request).encode())
        return digest.hexdigest()[:32]
