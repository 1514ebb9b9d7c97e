"""Which files a source is made of, by name, size and time of change."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path


def file_digest(paths: Sequence[Path], folder: Path) -> str:
    """SHA-256 over files below a folder; their content is not read.

    Raises:
        OSError: a file is not there any more.
    """
    facts = []
    for path in paths:
        found = path.stat()
        facts.append([path.relative_to(folder).as_posix(), found.st_size, found.st_mtime_ns])
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()
