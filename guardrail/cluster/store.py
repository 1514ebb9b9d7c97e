"""Where an agreement outlives the process that keeps it."""

from __future__ import annotations

import asyncio
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Protocol

from guardrail.cluster.orders import Pin

if TYPE_CHECKING:
    from collections.abc import Callable

_NAMESPACE = "guardrail"


class Store(Protocol):
    """A small record that one owner at a time writes; whoever took it last is the owner."""

    async def take(self, owner: str) -> Pin | None:
        """Become the owner; the agreement on record."""

    async def owner(self) -> str | None:
        """Who owns the record now."""

    async def write(self, pin: Pin) -> None:
        """Put an agreement on record."""


class KeyedStore:
    """The record over a store of keys and values, which `get` and `put` reach.

    Every owner writes under its own name: what one writes that has lost the record without knowing
    it is read by nobody.
    """

    def __init__(self, get: Callable[[str], str | None], put: Callable[[str, str], None]) -> None:
        self._get, self._put = get, put
        self._name = ""

    async def take(self, owner: str) -> Pin | None:
        """See `Store`."""
        return await asyncio.to_thread(self._take, owner)

    async def owner(self) -> str | None:
        """See `Store`."""
        return await asyncio.to_thread(self._get, "owner")

    async def write(self, pin: Pin) -> None:
        """See `Store`."""
        await asyncio.to_thread(self._put, f"pin:{self._name}", json.dumps(asdict(pin)))

    def _take(self, owner: str) -> Pin | None:
        before = self._get("owner")
        if before is not None and before != owner:
            self._put(f"before:{owner}", before)
        self._put("owner", owner)  # from here on the one before gives no leases
        self._name = owner
        writer: str | None = owner  # this may be a second try
        while writer is not None:  # one that ended while it took over has written nothing
            text = self._get(f"pin:{writer}")
            if text is not None:
                self._put(f"pin:{owner}", text)
                return Pin(**json.loads(text))
            writer = self._get(f"before:{writer}")
        return None


def memory_store(data: dict[str, str]) -> KeyedStore:
    """A record in a dictionary, for tests."""
    return KeyedStore(data.get, data.__setitem__)


def ray_store(name: str) -> KeyedStore:
    """A record in Ray's own control store, which lives as long as the cluster's head.

    Ray keeps the deployment itself there; with fault tolerance of the control store switched on,
    both outlive the head.
    """
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_put

    def get(key: str) -> str | None:
        value: bytes | None = _internal_kv_get(f"{name}:{key}", namespace=_NAMESPACE)
        return None if value is None else value.decode()

    def put(key: str, value: str) -> None:
        _internal_kv_put(f"{name}:{key}", value, overwrite=True, namespace=_NAMESPACE)

    return KeyedStore(get, put)


def forget(name: str) -> None:
    """Remove a deployment's record."""
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(f"{name}:", del_by_prefix=True, namespace=_NAMESPACE)
