"""What pictures and videos differ in while nothing of them is decoded: size, signature, errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from guardrail.errors import LimitExceededError, UnsupportedContentError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from guardrail.errors import InputError
    from guardrail.policy import Limits


@dataclass(frozen=True, slots=True)
class Medium:
    """A kind of encoded content, told by its first bytes and never by its name."""

    name: str
    limit: str  # of `Limits`: the encoded size
    error: type[InputError]  # of bytes that cannot be read as this
    sniffed: Callable[[bytes], str | None]  # the accepted format that the first bytes open
    media_types: Mapping[str, str]  # to the format they promise
    head: int  # base64 characters that hold any signature
    fetch_s: float  # how long fetching one may take

    def max_bytes(self, limits: Limits) -> int:
        """The largest encoded size that is accepted."""
        allowed: int = getattr(limits, self.limit)
        return allowed

    def check_bytes(self, size: int, limits: Limits, *, what: str) -> None:
        """Refuse what is larger than the policy allows.

        Raises:
            LimitExceededError: it is.
        """
        if size > (allowed := self.max_bytes(limits)):
            raise LimitExceededError(limit=self.limit, allowed=allowed, found=size, what=what)

    def check_media_type(self, data: bytes, declared: str, *, what: str) -> None:
        """Refuse a declared media type that is not accepted or that the content contradicts."""
        expected = self.media_types.get(declared.strip().lower())
        if expected is None:
            raise UnsupportedContentError(
                f"{what} has the media type {declared[:80]!r}; accepted: "
                f"{', '.join(self.media_types)}"
            )
        if (found := self.sniffed(data)) != expected:
            raise self.error(
                f"{what} is declared as {declared[:80]!r} but holds {found or 'no known format'}; "
                "declare the true media type"
            )
