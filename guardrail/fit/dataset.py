"""Contrast prompts: the packaged set, a user's own, and how they are split."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from guardrail.errors import DatasetError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

Label = Literal["unsafe", "safe"]
Split = Literal["fit", "select", "calibrate"]
NeutralSplit = Literal["fit", "held out"]
SPLITS: tuple[Split, ...] = ("fit", "select", "calibrate")
MINIMUM = 16  # prompts of each label in each split; below it no figure means anything
Row = TypeVar("Row", bound=BaseModel)
_SHARES = ("fit", "select", "fit", "calibrate")


class Prompt(BaseModel):
    """One contrast prompt. Only `text` and `label` are required of a user's own file.

    `kind` is `unsafe`, `matched` (same form and key words, harmless), `near` (same topic, harmless)
    or `ordinary`; prompts with the same `pair` always land in the same split.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    text: str = Field(min_length=1, max_length=4000)
    label: Label
    kind: str = ""
    id: str = ""
    pair: str = ""
    split: Split | None = None
    category: str = ""
    form: str = ""

    @field_validator("label", mode="before")
    @classmethod
    def _known_names(cls, value: object) -> object:
        return {"harmful": "unsafe", "harmless": "safe"}.get(str(value), value)

    @property
    def in_split(self) -> Split:
        """The split, which is never open once a prompt is made."""
        return self.split or "fit"

    def model_post_init(self, _context: object) -> None:
        """Fill what follows from the rest: a kind, and a split that depends on the pair alone."""
        fill = object.__setattr__
        if not self.kind:
            fill(self, "kind", "unsafe" if self.label == "unsafe" else "ordinary")
        if (self.kind == "unsafe") != (self.label == "unsafe"):
            raise ValueError(f"kind {self.kind!r} contradicts label {self.label!r}")
        if self.split is None:
            digest = hashlib.sha256((self.pair or self.text).encode()).digest()
            fill(self, "split", _SHARES[digest[0] % 4])


@dataclass(frozen=True)
class ContrastSet:
    """Prompts in a fixed order, with a digest of what was used."""

    prompts: tuple[Prompt, ...]

    def __post_init__(self) -> None:
        """Refuse a set on which nothing can be measured."""
        for split in SPLITS:
            for label in ("unsafe", "safe"):
                n = len(self.indices(split, labels=(label,)))
                if n < MINIMUM:
                    raise DatasetError(
                        f"split {split!r} has {n} {label} prompts; at least {MINIMUM} are needed. "
                        "Add prompts, or extend the packaged set instead of replacing it"
                    )

    def __len__(self) -> int:
        """How many prompts there are."""
        return len(self.prompts)

    @property
    def digest(self) -> str:
        """SHA-256 over texts, labels, kinds and splits, in order."""
        lines = (f"{p.split}\t{p.label}\t{p.kind}\t{p.pair}\t{p.text}" for p in self.prompts)
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def counts(self) -> dict[str, int]:
        """How many prompts of each split and kind."""
        return dict(sorted(Counter(f"{p.split}/{p.kind}" for p in self.prompts).items()))

    def indices(
        self, split: Split, *, labels: Sequence[str] = (), kinds: Sequence[str] = ()
    ) -> list[int]:
        """Places of a split's prompts, narrowed to labels and kinds where given."""
        return [
            i
            for i, p in enumerate(self.prompts)
            if p.split == split
            and (not labels or p.label in labels)
            and (not kinds or p.kind in kinds)
        ]

    def pairs(self, split: Split) -> list[tuple[int, int]]:
        """Places of (unsafe, matched safe) prompts that share a pair."""
        matched = self.indices(split, kinds=("matched",))
        safe = {self.prompts[i].pair: i for i in matched if self.prompts[i].pair}
        unsafe = self.indices(split, kinds=("unsafe",))
        return [(i, safe[self.prompts[i].pair]) for i in unsafe if self.prompts[i].pair in safe]


@dataclass(frozen=True)
class Frame:
    """A line of `frames.jsonl`: what one side says, and the other's answer where it has one.

    `{text}` in either is the place of a prompt. `call` is the tool call between the two.
    """

    text: str
    answer: str = ""
    call: Mapping[str, Any] = field(default_factory=dict)


@cache
def neutral_prompts(split: NeutralSplit) -> tuple[str, ...]:
    """What people write beside a picture or a quoted text, without any request of its own."""
    return tuple(row["text"] for row in _packaged_rows("neutral_prompts", split))


@cache
def surroundings(split: NeutralSplit) -> Mapping[str, tuple[str, ...]]:
    """Harmless sentences to put around a prompt, by register; a split has registers of its own."""
    found: dict[str, list[str]] = {}
    for row in _packaged_rows("surroundings", split):
        found.setdefault(row["register"], []).append(row["text"])
    return {register: tuple(texts) for register, texts in found.items()}


@cache
def frames(split: NeutralSplit) -> Mapping[str, tuple[Frame, ...]]:
    """What may hold a prompt or stand in a chat before or behind it, by use."""
    found: dict[str, list[Frame]] = {}
    for row in _packaged_rows("frames", split):
        frame = Frame(row["text"], row.get("answer", ""), row.get("call", {}))
        found.setdefault(row["use"], []).append(frame)
    return {use: tuple(rows) for use, rows in found.items()}


def _packaged_rows(name: str, split: NeutralSplit) -> list[dict[str, Any]]:
    lines = files("guardrail.data").joinpath(f"{name}.jsonl").read_text("utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["split"] == split]


def packaged() -> list[Prompt]:
    """The contrast set that comes with the package (CC0-1.0, see guardrail/data)."""
    text = files("guardrail.data").joinpath("contrast.jsonl").read_text("utf-8")
    return list(_prompts(text, "the packaged contrast set"))


def load_contrast(path: str | Path | None = None, *, extend: bool = True) -> ContrastSet:
    """The packaged prompts, a user's JSONL file, or (with `extend`) both.

    Raises:
        DatasetError: the file cannot be read, a line is malformed (it is named), or too few prompts
            are left to measure anything.
    """
    if path is None:
        return ContrastSet(tuple(packaged()))
    try:
        text = Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as exc:
        raise DatasetError(f"cannot read the contrast prompts in {path}: {exc}") from exc
    own = list(_prompts(text, str(path)))
    return ContrastSet(tuple([*packaged(), *own] if extend else own))


def _prompts(text: str, source: str) -> Iterator[Prompt]:
    return rows_of(text, Prompt, source=source, example='{"text": "...", "label": "unsafe"}')


def rows_of(text: str, kind: type[Row], *, source: str, example: str) -> Iterator[Row]:
    """The rows of a JSONL text; blank lines are none.

    Raises:
        DatasetError: a line is no such row; the message names it.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield kind.model_validate(json.loads(line))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"])) or "line"
            raise DatasetError(
                f"{source}, line {number}: {where}: {first['msg']}; each line is a JSON object "
                f"such as {example}"
            ) from error
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{source}, line {number}: not JSON ({error})") from error
