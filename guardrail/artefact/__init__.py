"""The fitted file: what it holds, how it is checked, saved and shared."""

from guardrail.artefact.artefact import Artefact as Artefact
