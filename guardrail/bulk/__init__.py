"""Verdicts for millions of rows: a folder, a JSONL file, Parquet, or a Ray dataset.

    from guardrail.bulk import score
    summary = score(guard, "pictures/", "verdicts/")

One row out per row in, in order. A run that was stopped at any point goes on where it was.
"""

from __future__ import annotations

from guardrail.bulk.job import Shard as Shard
from guardrail.bulk.job import Summary as Summary
from guardrail.bulk.job import prepare as prepare
from guardrail.bulk.job import score as score
from guardrail.bulk.ray_data import score_dataset as score_dataset
from guardrail.bulk.tables import Columns as Columns
