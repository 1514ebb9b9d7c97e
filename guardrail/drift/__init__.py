"""What a changed checkpoint does to a fitted artefact, and how to carry the artefact over.

Doors: `run.check_drift`, `transport.transport`, and `schema.DriftReport`, which `guardrail.report`
shows.
"""
