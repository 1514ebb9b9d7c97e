"""A whole run: which parts are left, scoring them, and the count at the end."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardrail import __version__
from guardrail.bulk.engine import scored
from guardrail.bulk.parts import FORMAT, Parts, read_manifest, require_same, write_manifest
from guardrail.bulk.sources import FilesSource, open_source
from guardrail.bulk.tables import Columns
from guardrail.errors import ConfigurationError, DatasetError
from guardrail.types import Action

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from guardrail.bulk.rows import OutRow
    from guardrail.bulk.sources import AnySource
    from guardrail.guard import Guard
    from guardrail.policy import Policy

    Progress = Callable[[str, int, int], None]

PART_ROWS = 1000
_READ = ("row", "action", "would_be", "modality", "reason", "error_type")


def score(
    guard: Guard,
    source: str | Path,
    out: str | Path,
    *,
    progress: Progress | None = None,
    readers: int | None = None,
    **options: Any,
) -> Summary:
    """Verdicts for every row of a source, written to `out`; `options` are those of `prepare`.

    Call it again after it was stopped: what is there is kept, and the result is that of one run.

    Raises:
        GuardrailError: see `prepare` and `Job.run`.
    """
    job = prepare(
        source, out, artefact_id=guard.artefact.artefact_id, policy=guard.policy, **options
    )
    job.run(guard, progress=progress, readers=readers)
    return job.summary()


def prepare(
    source: str | Path,
    out: str | Path,
    *,
    artefact_id: str,
    policy: Policy,
    columns: Columns | None = None,
    prompt: str | None = None,
    output: str = "parquet",
    part_rows: int = PART_ROWS,
    shard: Shard | None = None,
) -> Job:
    """A run that is ready: the source is open, and `out` is new or of the same run.

    Raises:
        ConfigurationError: `out` holds another run's verdicts, or a setting cannot hold.
        DatasetError: the source cannot be read.
        MissingExtraError: Parquet is read or written, and pyarrow is not installed.
    """
    folder, asked = Path(out), columns or Columns()
    folder.mkdir(parents=True, exist_ok=True)
    there = read_manifest(folder)
    known = None if there is None else there["source"]
    opened = open_source(Path(source), folder, asked, prompt=prompt, known=known)
    try:
        facts = {
            "format": FORMAT,
            "version": __version__,
            "source": {"kind": opened.kind, "rows": opened.rows, "digest": opened.digest},
            "columns": asdict(getattr(opened, "columns", asked)),
            "prompt": prompt,
            "artefact": artefact_id,
            "policy": policy.model_dump(mode="json"),
            "output": {"format": output, "part_rows": part_rows},
        }
        if there is not None:
            require_same(folder, there, facts)
        parts = Parts(out=folder, rows=opened.rows, size=part_rows, output=output)
        if isinstance(opened, FilesSource) and there is not None:
            opened.listing.keep()
        return Job(opened, parts, shard or Shard(), facts)
    except BaseException:
        if isinstance(opened, FilesSource):
            opened.listing.discard()
        raise


@dataclass(frozen=True)
class Shard:
    """One of several processes that share the work: part p is of shard p % of + 1."""

    number: int = 1
    of: int = 1

    def __post_init__(self) -> None:
        """Refuse a shard that is none."""
        if not 1 <= self.number <= self.of:
            raise ConfigurationError(
                f"a shard is 1 to n of n, such as 2/8; got {self.number}/{self.of}"
            )

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From `2/8`.

        Raises:
            ConfigurationError: it is none.
        """
        number, slash, of = text.partition("/")
        if not (slash and number.isdecimal() and of.isdecimal()):
            raise ConfigurationError(f"a shard is 1 to n of n, such as 2/8; got {text!r}")
        return cls(int(number), int(of))


class Job:
    """A source, the folder of its verdicts, and what both are tied to; see `prepare`."""

    def __init__(
        self, source: AnySource, parts: Parts, shard: Shard, facts: dict[str, Any]
    ) -> None:
        self.source, self.parts, self._facts = source, parts, facts
        self._own = range(shard.number - 1, parts.count, shard.of)

    def pending(self) -> list[int]:
        """The parts of this shard that are not there yet."""
        return [number for number in self._own if not self.parts.is_there(number)]

    def run(
        self, guard: Guard, *, progress: Progress | None = None, readers: int | None = None
    ) -> None:
        """Score what is left; may be stopped at any point and called again.

        Raises:
            ConfigurationError: the folder's verdicts are of another model.
            DatasetError: the source changed meanwhile.
            DetectorError: the detector fails on every row.
        """
        self._claim(guard)
        pending = self.pending()
        left = _Pending(set(pending), self.parts.size)
        total = sum(len(self.parts.span(number)) for number in self._own)
        done = total - sum(len(self.parts.span(number)) for number in pending)
        rows: list[OutRow] = []
        expected = iter(pending)
        for row in scored(guard, self.source.items(left), readers=readers):
            rows.append(row)
            done += 1
            if row["row"] + 1 == self.parts.span(row["row"] // self.parts.size).stop:
                self.parts.write(next(expected), rows)
                rows = []
            if progress is not None:
                progress("rows scored", done, total)
        if rows or next(expected, None) is not None:
            raise DatasetError("the source ended early: it changed while it was read; start again")
        self._require_unchanged()

    def summary(self) -> Summary:
        """Counts over this shard's parts, as they are on disk."""
        found = summarise(self.parts, [n for n in self._own if self.parts.is_there(n)])
        if found.complete:
            self.parts.sweep()
        return found

    def _claim(self, guard: Guard) -> None:
        """Write down what the verdicts are of, or compare with what is written."""
        from guardrail.model.fingerprint import fingerprint

        about = fingerprint(guard.loaded).model_dump(mode="json")
        model = {"fingerprint": about, "dtype": str(guard.loaded.model.dtype)}
        write_manifest(self.parts.out, self._facts | {"model": model})
        if isinstance(self.source, FilesSource):
            self.source.listing.keep()

    def _require_unchanged(self) -> None:
        if self.source.now() != self.source.digest:
            raise DatasetError(
                "the source changed while it was read, so some verdicts may be of what is gone; "
                "start again with a new folder"
            )


class _Pending:
    """Which rows are of parts that are left."""

    def __init__(self, parts: set[int], size: int) -> None:
        self._parts, self._size = parts, size

    def row(self, number: int) -> bool:
        return number // self._size in self._parts

    def any(self, start: int, stop: int) -> bool:
        first, last = start // self._size, (stop - 1) // self._size
        return any(number in self._parts for number in range(first, last + 1))


@dataclass(kw_only=True)
class Summary:
    """Counts over the rows of this run's parts; `of` is how many rows the source has.

    `actions` and `would_be` count by modality and action; `errors` by type. `unreadable` rows are
    at fault themselves, `failed` ones met an outage of the detector.
    """

    of: int
    complete: bool
    rows: int = 0
    scored: int = 0
    unreadable: int = 0
    failed: int = 0
    flagged: int = 0
    actions: dict[str, Counter[str]] = field(default_factory=dict)
    would_be: dict[str, Counter[str]] = field(default_factory=dict)
    errors: Counter[str] = field(default_factory=Counter)

    def add(self, row: dict[str, object]) -> None:
        """One more row."""
        self.rows += 1
        match row["reason"]:
            case "unreadable":
                self.unreadable += 1
            case "failed" | "detector_failed":
                self.failed += 1
            case _:
                self.scored += 1
        if row["error_type"] is not None:
            self.errors[str(row["error_type"])] += 1
        elif row["reason"] == "detector_failed":
            self.errors["detector_failed"] += 1
        else:
            kind = str(row["modality"])
            self.actions.setdefault(kind, Counter())[str(row["action"])] += 1
            self.would_be.setdefault(kind, Counter())[str(row["would_be"])] += 1
            self.flagged += Action.FLAG in (row["action"], row["would_be"])

    def to_dict(self) -> dict[str, object]:
        """Plain values, sorted."""

        def plain(counts: dict[str, Counter[str]]) -> dict[str, dict[str, int]]:
            return {kind: dict(sorted(counts[kind].items())) for kind in sorted(counts)}

        return {
            "rows": self.rows,
            "of": self.of,
            "complete": self.complete,
            "scored": self.scored,
            "flagged": self.flagged,
            "unreadable": self.unreadable,
            "failed": self.failed,
            "actions": plain(self.actions),
            "would_be": plain(self.would_be),
            "errors": dict(sorted(self.errors.items())),
        }


def summarise(parts: Parts, numbers: Iterable[int]) -> Summary:
    """Count what parts hold; each must have exactly its rows.

    Raises:
        DatasetError: a part is damaged.
    """
    complete = all(parts.is_there(number) for number in range(parts.count))
    found = Summary(of=parts.rows, complete=complete)
    for number in numbers:
        for row in parts.read(number, _READ):
            found.add(row)
    return found
