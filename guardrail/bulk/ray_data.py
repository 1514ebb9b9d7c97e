"""Verdicts for the rows of a Ray dataset: a pool of actors, a guard in each."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from guardrail.bulk.engine import scored
from guardrail.bulk.rows import VERDICT_FIELDS, Item
from guardrail.bulk.tables import Columns, load_row, media_by_type
from guardrail.errors import ConfigurationError
from guardrail.extras import require

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ray.data import Dataset

    from guardrail.policy import Policy


def score_dataset(
    dataset: Dataset,
    *,
    model: str,
    artefact: str,
    policy: Policy | None = None,
    columns: Columns | None = None,
    prompt: str | None = None,
    keep: Sequence[str] = (),
    folder: str | Path = ".",
    actors: int | tuple[int, int] = 1,
    batch_size: int = 64,
    num_cpus: float | None = None,
    num_gpus: float | None = None,
    **load: Any,
) -> Dataset:
    """A dataset with one row of verdict for each row of `dataset`, made as it is consumed.

    A row has `key` (the id column's value, where there is one), the columns named in `keep`, and
    the verdict, or the error that stands in its place. The rows of a Ray dataset have no numbers
    and no order, so an id or a kept column is what they are told apart by. `actors` is how many
    models are loaded, or the least and most; `model`, `artefact` and relative paths (taken from
    `folder`) must be readable on every machine. `load` are keywords of `Guard.from_pretrained`.

    Raises:
        ConfigurationError: the rows could not be told apart, there are no such columns, or one
            that looks like part of a request would not be read.
        MissingExtraError: Ray is not installed.
    """
    data = require("ray.data")
    schema = dataset.schema()
    names, types = ([], []) if schema is None else (schema.names, schema.types)
    found = (columns or Columns()).found_in(names, media_by_type(names, types))
    if found.id is None and not keep:
        raise ConfigurationError(
            "the rows of a Ray dataset have no numbers: name an id column, or columns to keep"
        )
    if clash := sorted({"key", *VERDICT_FIELDS} & set(keep)):
        raise ConfigurationError(f"the column {clash[0]!r} is written by the guard; rename yours")
    if isinstance(actors, int):
        pool = data.ActorPoolStrategy(size=actors)
    else:
        pool = data.ActorPoolStrategy(min_size=actors[0], max_size=actors[1])
    return dataset.map_batches(
        _Scorer,
        fn_constructor_kwargs={
            "guarded": {"source": model, "artefact": artefact, "policy": policy, **load},
            "columns": found,
            "prompt": prompt,
            "keep": tuple(keep),
            "folder": Path(folder),
        },
        compute=pool,
        batch_size=batch_size,
        batch_format="pyarrow",
        num_cpus=num_cpus,
        num_gpus=num_gpus,
    )


class _Scorer:
    """What runs in an actor: it loads the model once and scores batch after batch."""

    def __init__(
        self,
        *,
        guarded: dict[str, Any],
        columns: Columns,
        prompt: str | None,
        keep: tuple[str, ...],
        folder: Path,
    ) -> None:
        from guardrail.guard import Guard

        self._guard = Guard.from_pretrained(**guarded)
        self._columns, self._prompt, self._keep, self._folder = columns, prompt, keep, folder

    def __call__(self, batch: Any) -> Any:
        """A table of verdicts for a table of rows."""
        arrow = require("pyarrow")
        read = batch.select(self._columns.names())
        items = (Item(place, partial(self._load, read, place)) for place in range(batch.num_rows))
        rows = list(scored(self._guard, items))
        columns = {name: batch.column(name) for name in self._keep}
        columns["key"] = arrow.array([row["key"] or None for row in rows], arrow.string())
        for name, kind in VERDICT_FIELDS.items():
            columns[name] = arrow.array([row[name] for row in rows], kind)
        return arrow.table(columns)

    def _load(self, table: Any, place: int) -> Any:
        return load_row(
            table, place, self._columns, self._folder, prompt=self._prompt, otherwise=""
        )
