"""Configurations and processors of the tiny models in `guardrail.testing`, built in code."""

from __future__ import annotations

from typing import TYPE_CHECKING

from guardrail.testing_families import blips, gemmas, llavas, own, qwens, texts, tiles

if TYPE_CHECKING:
    from guardrail.testing_families.parts import Family

_MODULES = (llavas, qwens, gemmas, tiles, own, blips, texts)
_BY_NAME: dict[str, Family] = {one.name: one for module in _MODULES for one in module.FAMILIES}

FAMILIES = tuple(_BY_NAME)
"""What `tiny_model` can build; `family(name)` says what each of them takes."""

IMAGE_FAMILIES = tuple(name for name, one in _BY_NAME.items() if one.pictures)
"""Those whose messages may hold pictures; the others read text only."""

VIDEO_FAMILIES = tuple(name for name, one in _BY_NAME.items() if one.video)
"""Those whose messages may hold videos, too."""


def family(name: str) -> Family:
    """What the tiny model of that name takes: pictures, videos, text alone.

    Raises:
        ValueError: No such family; the message lists the known ones.
    """
    if name not in _BY_NAME:
        raise ValueError(f"unknown family {name!r}; choose one of {', '.join(FAMILIES)}")
    return _BY_NAME[name]
