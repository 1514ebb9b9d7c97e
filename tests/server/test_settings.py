from __future__ import annotations

import sys

import pytest
from pydantic import ValidationError

import guardrail.server
from guardrail.errors import ConfigurationError, MissingExtraError
from guardrail.server import ServerSettings
from guardrail.server.keys import keys_from_text
from guardrail.server.proxy import UpstreamSettings, read_key
from guardrail.server.settings import hostnames, is_loopback, require_safe_bind

TWO = keys_from_text("a:0123456789abcdef0,b:0123456789abcdef1", source="x")


def test_one_of_several_clients_has_half_of_the_places():
    assert ServerSettings(max_concurrent=9).per_client(()) == 9
    assert ServerSettings(max_concurrent=9).per_client(TWO[:1]) == 9
    assert ServerSettings(max_concurrent=9).per_client(TWO) == 5
    assert ServerSettings(max_concurrent=9, max_per_client=2).per_client(TWO) == 2


def test_a_misspelt_setting_is_an_error():
    with pytest.raises(ValidationError):
        ServerSettings(max_body=1)


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


KEY = "sk-very-secret"


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("http://h:1", "http://h:1/v1"),
        ("http://h:1/", "http://h:1/v1"),
        ("https://h/v1/", "https://h/v1"),
        ("https://h/api/openai", "https://h/api/openai"),
    ],
)
def test_an_address_without_a_path_gets_the_usual_one(given, used):
    assert UpstreamSettings(url=given).url == used


@pytest.mark.parametrize(
    "url",
    [
        "h:1",
        "ftp://h",
        "http://",
        "http://u:p@h/v1",
        "http://h/?k=1",
        "http://h:x",
        "http://h/\x07",
    ],
)
def test_an_address_that_is_none_or_hides_a_secret_is_refused(url):
    with pytest.raises(ValidationError):
        UpstreamSettings(url=url)


@pytest.mark.parametrize("key", ["", "two words", "line\nbreak", "naïve"])
def test_a_key_that_no_header_holds_is_refused_and_not_told(key):
    with pytest.raises(ValidationError) as caught:
        UpstreamSettings(url="http://h", key=key)
    assert not key or key not in str(caught.value)


def test_a_key_is_not_in_the_settings_text():
    assert KEY not in repr(UpstreamSettings(url="http://h", key=KEY))


def test_a_key_comes_from_a_variable_or_a_file(monkeypatch, tmp_path):
    monkeypatch.setenv("UP_KEY", f" {KEY}\n")
    file = tmp_path / "key"
    file.write_text(f"{KEY}\n")
    assert read_key(env="UP_KEY").get_secret_value() == KEY
    assert read_key(file=file).get_secret_value() == KEY
    assert read_key() is None


def test_a_named_key_that_is_not_there_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv("UP_KEY", " ")
    (tmp_path / "empty").write_text("")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for named in (
        {"env": "UP_KEY"},
        {"env": "NOT_SET"},
        {"file": tmp_path / "none"},
        {"file": tmp_path / "empty"},
        {"file": tmp_path / "bytes"},
        {"env": "UP_KEY", "file": tmp_path / "empty"},
    ):
        with pytest.raises(ConfigurationError):
            read_key(**named)


@pytest.mark.parametrize(
    ("url", "key", "clear"),
    [
        ("http://models.internal:8000", KEY, True),
        ("http://10.0.0.1/v1", KEY, True),
        ("http://10.0.0.1/v1", None, False),
        ("https://10.0.0.1/v1", KEY, False),
        ("http://127.0.0.1:8000", KEY, False),
        ("http://[::1]:8000", KEY, False),
        ("http://localhost:8000", KEY, False),
    ],
)
def test_a_key_without_tls_is_noticed(url, key, clear):
    assert UpstreamSettings(url=url, key=key).key_in_clear is clear


def test_settings_need_no_extra_and_an_app_names_its_own(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(vars(guardrail.server), "create_app", raising=False)
    assert guardrail.server.ServerSettings is ServerSettings
    with pytest.raises(MissingExtraError, match=r"guardrail-vlm\[serve\]"):
        _ = guardrail.server.create_app
