"""Packaged contrast prompts."""
