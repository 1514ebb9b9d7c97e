"""Offline: from contrast prompts and a model to an artefact."""
