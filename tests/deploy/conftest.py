"""Where the files for deployment lie, and the reader of Dockerfiles beside these tests."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def deploy() -> Path:
    return ROOT / "examples" / "deploy"


@pytest.fixture(scope="session")
def dockerfile() -> Iterator[Any]:
    """The module that reads a Dockerfile and runs its steps."""
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        import dockerfile

        yield dockerfile
    finally:
        sys.path.remove(str(Path(__file__).parent))
