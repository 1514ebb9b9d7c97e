"""Self-contained HTML pages and the figures in them (extra `report`).

Doors: `evaluation.evaluation_page`, `drift.drift_page` and `attack.attack_page`, which take the
reports' own models; `page.render` and `page.write_page` for pages that are made elsewhere.
"""

from __future__ import annotations

from guardrail.report.evaluation import evaluation_page

__all__ = ["evaluation_page"]
