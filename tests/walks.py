"""Which of the product's files a call passes through: what its reader has to open."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

ROOT = Path(__file__).resolve().parent.parent
_PRODUCT = (f"{ROOT}/guardrail/", f"{ROOT}/integrations/")


def files_walked(call: Callable[[], object]) -> set[str]:
    """The product's files with a function that ran during `call`, relative to the repository.

    Followed are this thread and those that start meanwhile, so a guard should have had no request
    before. What a module does while it is imported does not count.
    """
    walked: set[str] = set()

    def note(frame: FrameType, event: str, _arg: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name not in walked and name.startswith(_PRODUCT):
            if not _is_importing(frame):
                walked.add(name)

    threading.setprofile(note)
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
        threading.setprofile(None)
    return {str(Path(name).relative_to(ROOT)) for name in walked}


def _is_importing(frame: FrameType | None) -> bool:
    """Whether one of the product's modules is being imported on this thread."""
    while frame is not None:
        if frame.f_code.co_name == "<module>" and frame.f_code.co_filename.startswith(_PRODUCT):
            return True
        frame = frame.f_back
    return False
