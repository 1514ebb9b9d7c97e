"""Local files: regular ones only, bounded before they are read."""

from __future__ import annotations

import os
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from io import BufferedReader
    from pathlib import Path

    from guardrail.policy import Limits
    from guardrail.requests.medium import Medium


@contextmanager
def opened(path: Path, medium: Medium, limits: Limits, what: str) -> Iterator[BufferedReader]:
    """The file for reading, once it is known to be a regular one and no larger than allowed.

    Raises:
        InputError: it cannot be opened or read, is no regular file, or is too large.
    """
    shown = repr(str(path)[:80])
    # O_NONBLOCK: opening a pipe must not wait for its writer
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as exc:  # ValueError: NUL or a lone surrogate
        reason = exc.strerror if isinstance(exc, OSError) else exc
        raise medium.error(f"{what}: cannot open the file {shown}: {reason}") from exc
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise medium.error(f"{what}: {shown} is no regular file")
        medium.check_bytes(status.st_size, limits, what=what)
        with open(descriptor, "rb", closefd=False) as file:
            yield file
    except OSError as exc:
        raise medium.error(f"{what}: cannot read {shown}: {exc.strerror}") from exc
    finally:
        os.close(descriptor)


def file_bytes(path: Path, medium: Medium, limits: Limits, what: str) -> bytes:
    """All of a file.

    Raises:
        InputError: as `opened`.
    """
    with opened(path, medium, limits, what) as file:
        data = file.read(medium.max_bytes(limits) + 1)  # it may have grown since
    medium.check_bytes(len(data), limits, what=what)
    return data
