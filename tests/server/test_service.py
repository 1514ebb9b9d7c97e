from __future__ import annotations

from guardrail.policy import Policy
from guardrail.server import ServerSettings, create_app
from guardrail.server.service import served_policy


def test_strangers_name_no_files_and_no_addresses():
    rules = Policy(allowed_hosts={"pictures.example"})
    shut = served_policy(rules, ServerSettings())
    assert (shut.local_files, shut.allowed_hosts) == (False, frozenset())
    opened = served_policy(rules, ServerSettings(fetch_urls=True))
    assert (opened.local_files, opened.allowed_hosts) == (False, {"pictures.example"})
    assert served_policy(rules, ServerSettings()).limits == rules.limits


async def test_the_guard_that_was_given_stays_open_and_the_one_made_here_is_closed(guard_of):
    given = guard_of()
    service = create_app(given).state.service
    assert service.guard.policy.local_files is False
    await service.aclose()
    assert service.guard.closed
    assert not given.closed
