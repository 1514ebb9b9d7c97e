"""All that is asked of a guard in each family: what `guardrail conform` asks, and much beyond.

Four of the user's checks stand here under their own name in a version that looks closer.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from guardrail.conformance import CHECKS, Definition, Report, check_model
from tests.conformance import editing_checks, generation_checks, prefill_checks

USERS = {definition.name: definition for definition in CHECKS}
EVERY_CHECK = (
    Definition("layers", "decoder layers found", prefill_checks.layers),
    replace(USERS["score"], run=prefill_checks.score),
    USERS["unsteered"],
    replace(USERS["steering"], run=editing_checks.steering),
    USERS["batch"],
    USERS["turns"],
    replace(USERS["flag"], run=editing_checks.flag),
    Definition("prefill", "one prefill", prefill_checks.prefill),
    Definition("early_edit", "edit before the readout", editing_checks.early, mode=True),
    Definition("check", "check leaves early", prefill_checks.check_only),
    Definition("static", "static cache", generation_checks.static_cache, mode=True),
    Definition("compiled", "compiled decoding", generation_checks.compiled, mode=True),
    Definition("beams", "beam search", generation_checks.beams, mode=True),
    Definition("sequences", "several answers", generation_checks.sequences, mode=True),
    Definition("assisted", "prompt lookup", generation_checks.assisted, mode=True),
    Definition("chunked", "prefill in chunks", generation_checks.chunked, mode=True),
    replace(USERS["stream"], run=generation_checks.stream),
    USERS["video"],
    Definition("concurrency", "threads get their own verdicts", generation_checks.concurrency),
)


def check_everything(model: Any, processor: Any, **options: Any) -> Report:
    """`check_model` with every check."""
    return check_model(model, processor, checks=EVERY_CHECK, **options)
