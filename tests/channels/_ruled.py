"""A guard of words under other rules, whose questions are all in one list."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guardrail.policy import Policy
    from guardrail.testing import FakeGuard
    from guardrail.types import Verdict


class Ruled:
    """The guard that a web app makes of the one it is given: what it is asked, that one shows."""

    supports_tools = True

    def __init__(self, guard: FakeGuard, policy: Policy | None = None) -> None:
        self.guard, self.policy = guard, policy or guard.policy

    def with_policy(self, policy: Policy, **_options: Any) -> Ruled:
        return type(self)(self.guard, policy)

    def check(self, value: Any, **options: Any) -> Verdict:
        other = self.guard.with_policy(self.policy)
        try:
            return other.check(value, **options)
        finally:
            self.guard.seen += [*other.seen, options.get("tools")]

    async def acheck(self, value: Any, **options: Any) -> Verdict:
        return self.check(value, **options)
