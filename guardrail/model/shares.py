"""How much of a bounded number of places one client may hold."""

from __future__ import annotations

_FOR_EACH_FREE = 3


def within_share(client: str | None, held: int, free: int) -> bool:
    """Whether a client that holds so many places may have one of the free ones.

    A named client may hold three for each that is free: alone three quarters of them, and there is
    always room for another one's first. Who names no client may have all.
    """
    return free > 0 and (client is None or held < _FOR_EACH_FREE * free)
