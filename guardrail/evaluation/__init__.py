"""Evidence for a safety review: a fitted guard measured on labelled inputs, with controls.

Doors: `run.evaluate`, `items.load_items`, `judge.load_judge` and `judge.ModelJudge`, and
`schema.Report`, which `guardrail.report` shows.
"""
