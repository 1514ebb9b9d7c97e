"""What a guard holds against somebody who wants through: attacks, measured on one's own model.

Doors: `run.attack`, which measures, `schema.AttackReport`, which `guardrail.report` shows, and
`attacks`, with what an attack of one's own is made of: `Attack`, `Scorer`, `Budget`, `known`.
"""
