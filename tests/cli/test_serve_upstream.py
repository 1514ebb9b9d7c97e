"""The options of proxy mode become an upstream's settings."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import typer

from guardrail.cli.serve_upstream import upstream_answerer
from guardrail.errors import ConfigurationError

NONE = {"key_env": None, "key_file": None, "models": None, "unchecked": None}


def settings_of(url="http://127.0.0.1:8000", **options):
    answerer = upstream_answerer(url, **NONE | options)
    return answerer(SimpleNamespace())._settings


def test_without_an_upstream_the_guarded_model_answers():
    assert upstream_answerer(None, **NONE) is None


@pytest.mark.parametrize("given", [{"key_env": "X"}, {"models": ["a"]}, {"unchecked": ["a"]}])
def test_options_without_an_upstream_are_wrong_usage(given):
    with pytest.raises(typer.BadParameter):
        upstream_answerer(None, **NONE | given)


def test_options_become_settings(monkeypatch):
    monkeypatch.setenv("UP_KEY", "sk-secret")
    settings = settings_of(
        key_env="UP_KEY",
        models=["small=org/small:3b", "big"],
        unchecked=["lora"],
        timeout_s=9,
        retries=1,
        ca_file=None,
        trust_env=True,
    )
    assert settings.url == "http://127.0.0.1:8000/v1"
    assert settings.key.get_secret_value() == "sk-secret"
    assert settings.models == {"small": "org/small:3b", "big": "big"}
    assert settings.unchecked == {"lora"}
    assert (settings.timeout_s, settings.retries, settings.trust_env) == (9, 1, True)


@pytest.mark.parametrize("models", [["=a"], ["a="], [""]])
def test_half_a_name_is_wrong_usage(models):
    with pytest.raises(typer.BadParameter):
        settings_of(models=models)


def test_what_cannot_hold_is_told_without_secrets(monkeypatch):
    monkeypatch.setenv("UP_KEY", "two words")
    with pytest.raises(ConfigurationError, match="printable") as caught:
        settings_of(key_env="UP_KEY")
    assert "two words" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="--upstream: the upstream's address"):
        settings_of("ftp://host")
    with pytest.raises(ConfigurationError, match="no user"):
        settings_of("http://user:secret@host/v1")
