"""What was asked, in the log: only where an operator wants it there."""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from guardrail.server.keys import Caller

_log = logging.getLogger("guardrail.prompts")
_MOST_CHARS = 20_000
_LONG_DATA = re.compile(r"[A-Za-z0-9+/=]{256,}")


def log_prompt(caller: Caller, body: bytes) -> None:
    """Write a request's body to the log, pictures shortened."""
    text = _LONG_DATA.sub(
        lambda found: f"<{len(found[0])} characters>", body.decode(errors="replace")
    )
    _log.info(
        "prompt",
        extra={
            "request_id": caller.request_id,
            "client": caller.client,
            "body": text[:_MOST_CHARS],
        },
    )
