"""The folder of the tiny VLM as the package `tiny_vlm`, which the assembled model makes of it."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "tiny_vlm"
PHOTOGRAPHS = FOLDER.parent / "photographs"


def module(name: str) -> ModuleType:
    """A module of the folder; relative imports work in it."""
    if "tiny_vlm" not in sys.modules:
        sys.modules["tiny_vlm"] = package = ModuleType("tiny_vlm")
        package.__path__ = [str(FOLDER)]
    return import_module(f"tiny_vlm.{name}")
