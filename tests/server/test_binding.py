from __future__ import annotations

import pytest

from guardrail.errors import ConfigurationError
from guardrail.server.binding import hostnames, is_loopback, require_safe_bind


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "127.9.9.9", "::1", "[::1]", "localhost", "LOCALHOST."]
)
def test_loopback_needs_no_keys(host):
    assert is_loopback(host)
    require_safe_bind(host, ())


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.2", "example.org", "", "2130706433"])
def test_other_hosts_are_refused_without_keys(host):
    with pytest.raises(ConfigurationError, match="--api-keys"):
        require_safe_bind(host, ())
    require_safe_bind(host, ("a key",))
    require_safe_bind(host, (), insecure=True)


def test_without_keys_only_names_of_this_machine_are_answered():
    assert "localhost" in hostnames("127.0.0.5", ())
    assert "127.0.0.5" in hostnames("127.0.0.5", ())
    assert hostnames("127.0.0.1", ("a key",)) == frozenset()
    assert hostnames("0.0.0.0", (), insecure=True) == frozenset()
