"""Self-contained HTML pages and the figures in them (extra `report`)."""

from __future__ import annotations

from guardrail.report.evaluation import evaluation_page

__all__ = ["evaluation_page"]
