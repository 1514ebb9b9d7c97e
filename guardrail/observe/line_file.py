"""A text file of whole lines: on a full disk the line in hand is lost, never half of it kept."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_MODE = 0o600  # who judged whom, and when, is nobody else's business


class LineFile:
    """Appends to a file without a buffer, in the form that `logging.StreamHandler` writes to.

    A new file is readable by its owner alone; the mode of one that is there stays.
    """

    def __init__(self, path: str | Path) -> None:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
        self._fd = os.open(path, flags, _MODE)

    def write(self, text: str) -> int:
        """Append a text as a whole.

        Raises:
            OSError: it could not be written, and nothing of it is in the file.
        """
        data = text.encode()
        rest = memoryview(data)
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError:
            if (written := len(data) - len(rest)) > 0:
                with suppress(OSError):  # a device or pipe cannot be cut
                    os.ftruncate(self._fd, self.tell() - written)
            raise
        return len(text)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go somewhere; writing happens at the end all the same."""
        return os.lseek(self._fd, offset, whence)

    def tell(self) -> int:
        """The place in bytes; after a write, the file's size."""
        return os.lseek(self._fd, 0, os.SEEK_CUR)

    def fileno(self) -> int:
        """The file's descriptor."""
        return self._fd

    def flush(self) -> None:
        """Nothing waits here."""

    def close(self) -> None:
        """Close the file; safe to call twice."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
