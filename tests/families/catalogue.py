"""All families that the tests know: those of `guardrail.testing` and many more.

Importing it registers them, so that `tiny_model` builds each.
"""

from __future__ import annotations

from guardrail.testing.families import register
from tests.families import blips, gemmas, llavas, own, qwens, texts, tiles

_MODULES = (llavas, qwens, gemmas, tiles, own, blips, texts)
_ALL = tuple(one for module in _MODULES for one in module.FAMILIES)
register(*_ALL)

FAMILIES = tuple(one.name for one in _ALL)
IMAGE_FAMILIES = tuple(one.name for one in _ALL if one.pictures)
VIDEO_FAMILIES = tuple(one.name for one in _ALL if one.video)
