"""JSON that all readers read alike: nothing twice, no number that is none."""

from __future__ import annotations

import json
import math
from typing import Any


def strict_json(text: str) -> Any:
    """The value that `text` writes down.

    Raises:
        ValueError: it is no JSON, a key stands twice in one object (readers differ in which one
            they take), or a number is not finite.
        RecursionError: it is nested too deep.
    """
    return json.loads(text, object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value
