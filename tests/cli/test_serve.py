from __future__ import annotations

import socket
import sys
from contextlib import nullcontext
from types import SimpleNamespace

import prometheus_client
import pytest
import typer

from guardrail.cli.serve import observing
from guardrail.cli.serve_options import UpstreamKey, upstream_answerer
from guardrail.errors import ConfigurationError, MissingExtraError
from guardrail.server.settings import UpstreamOptions

TOKEN = "0123456789abcdef"


@pytest.fixture(autouse=True)
def _no_model(run, monkeypatch):  # `run` clears the variables first
    """None of these gets as far as a model."""

    def load(*_args, **_more):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("guardrail.model.load.load_model", load)
    monkeypatch.delenv("GUARDRAIL_API_KEYS", raising=False)
    monkeypatch.setenv("GUARDRAIL_SERVE_PORT", "0")  # whatever else runs on this machine
    monkeypatch.setattr("guardrail.server.logs.configure", lambda **_: None)


def serve(run, *options):
    return run("serve", "nowhere", "-a", "nowhere.safetensors", *options)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--host", "0.0.0.0"], "--api-keys"),
        (["--log-format", "xml"], "json, text"),
        (["--log-level", "loud"], "debug"),
        (["--audit-max-bytes", "10"], "--audit"),
        (["--port", "70000"], "65535"),
        (["--timeout", "0"], "timeout"),
        (["--", "--max-model-len", "8"], "--engine vllm"),
        (["--engine", "vllm", "--device", "cuda"], "--device"),
    ],
)
def test_wrong_usage_is_told_before_a_model_is_loaded(options, told, run):
    result = serve(run, *options)
    assert result.exit_code == 2
    assert told in result.output


def test_without_vllm_its_extra_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    result = serve(run, "--engine", "vllm")
    assert result.exit_code == 2
    assert "guardrail-vlm[vllm]" in result.stderr


def test_vllms_metrics_and_the_servers_are_told_together_and_part_again(plain_environment):
    theirs = prometheus_client.Counter("vllm_of_a_test", "Theirs.")
    try:
        for _ in range(2):
            with observing("tiny", None, otel=False, engine="vllm") as seen:
                text = seen.metrics.exposition(None)[0].decode()
                assert "vllm_of_a_test_total" in text
                assert text.count("# TYPE guardrail_outages_total") == 1
                assert text.count("# TYPE process_cpu_seconds_total") == 1
        assert "vllm_of_a_test" not in seen.metrics.exposition(None)[0].decode()
    finally:
        prometheus_client.REGISTRY.unregister(theirs)


def test_without_the_servers_packages_their_extra_is_named(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    monkeypatch.delitem(sys.modules, "guardrail.server.logs", raising=False)  # as in a new process
    monkeypatch.delattr("guardrail.server.logs", raising=False)
    result = serve(run)
    assert result.exit_code == 2
    assert "guardrail-vlm[serve]" in result.stderr


def test_keys_that_cannot_be_used_are_told_without_the_token(run, monkeypatch):
    monkeypatch.setenv("GUARDRAIL_API_KEYS", "web:tooshort")
    result = serve(run)
    assert result.exit_code == 2
    assert "GUARDRAIL_API_KEYS, entry 1" in " ".join(result.output.split())
    assert "tooshort" not in result.output


def test_a_public_address_with_keys_goes_on_to_the_artefact(run, monkeypatch, tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"web:{TOKEN}")
    keys.chmod(0o600)
    result = serve(run, "--host", "0.0.0.0", "--api-keys", str(keys))
    assert result.exit_code == 2
    assert "nowhere.safetensors" in " ".join(result.output.split())
    assert TOKEN not in result.output


def test_a_busy_port_is_told_before_a_model_is_loaded(run):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        result = serve(run, "--port", str(taken.getsockname()[1]))
    assert result.exit_code == 2
    assert "already in use; choose another address" in " ".join(result.output.split())
    assert "nowhere.safetensors" not in result.output  # nor are files read before


def test_options_come_from_the_environment_too(run, monkeypatch):
    monkeypatch.setenv("GUARDRAIL_SERVE_HOST", "0.0.0.0")
    result = serve(run)
    assert "0.0.0.0 can be reached" in " ".join(result.output.split())


def test_every_bound_reaches_the_server_from_an_option_or_a_variable(run, monkeypatch):
    served = []
    monkeypatch.setattr("guardrail.cli.serve.guard_source", lambda *_: nullcontext())
    monkeypatch.setattr("guardrail.cli.serve._answer", lambda _, *parts: served.append(parts))
    monkeypatch.setenv("GUARDRAIL_SERVE_DEFAULT_TOKENS", "7")
    monkeypatch.setenv("GUARDRAIL_SERVE_MAX_CHECKS", "9")
    numbers = ["--max-checks", "8", "--max-concurrent", "5", "--max-per-client", "3"]
    times = ["--timeout", "4", "--body-timeout", "2", "--header-timeout", "1", "--drain", "6"]
    sizes = ["--max-connections", "10", "--max-body-bytes", "11"]
    assert serve(run, *numbers, *times, *sizes).exit_code == 0
    ((settings, listening, *_),) = served
    assert (settings.default_tokens, settings.max_checks) == (7, 8)
    assert (settings.max_concurrent, settings.max_per_client) == (5, 3)
    assert (settings.timeout_s, settings.body_timeout_s, settings.drain_s) == (4, 2, 6)
    assert settings.max_body_bytes == 11
    assert (listening.header_timeout_s, listening.max_connections) == (1, 10)


@pytest.mark.parametrize(
    ("options", "shown"),
    [
        ([], None),
        (["--expose-scores"], True),
        (["--hide-scores"], False),
        (["--insecure-no-keys"], False),  # everybody may come by way of this machine then
        (["--insecure-no-keys", "--expose-scores"], True),
    ],
)
def test_who_is_told_scores_is_decided_by_options(run, monkeypatch, options, shown):
    served = []
    monkeypatch.setattr("guardrail.cli.serve.guard_source", lambda *_: nullcontext())
    monkeypatch.setattr("guardrail.cli.serve._answer", lambda _, *parts: served.append(parts))
    assert serve(run, *options).exit_code == 0
    ((settings, *_),) = served
    assert settings.expose_scores is shown


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in (
        "OTEL_TRACES_EXPORTER",
        "OTEL_EXPORTER_OTLP_ENDPOINT",
        "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    ):
        monkeypatch.delenv(name, raising=False)


def test_counts_are_always_there_and_spans_only_if_asked_for():
    with observing("tiny", None, otel=False) as seen:
        assert seen._traces is None
        assert b"guardrail_outages_total 0.0" in seen.metrics.exposition(None)[0]


def test_the_option_and_the_environment_ask_for_spans(monkeypatch):
    pytest.importorskip("opentelemetry.sdk")
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    with observing("tiny", None, otel=False) as seen:
        assert seen._traces is not None
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    with observing("tiny", None, otel=False) as seen:
        assert seen._traces is None


def test_spans_without_their_extra_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    monkeypatch.delitem(sys.modules, "guardrail.observe.tracing", raising=False)
    monkeypatch.delattr("guardrail.observe.tracing", raising=False)  # so that it is put back
    with pytest.raises(MissingExtraError, match="otel"), observing("tiny", None, otel=True):
        pass


def upstream(url, *, key_env=None, key_file=None, **options):
    key = UpstreamKey(key_env=key_env, key_file=key_file)
    return upstream_answerer(UpstreamOptions(url=url, **options), key)


def settings_of(url="http://127.0.0.1:8000", **options):
    return upstream(url, **options)(SimpleNamespace())._settings


def test_without_an_upstream_the_guarded_model_answers():
    assert upstream(None) is None


@pytest.mark.parametrize("given", [{"key_env": "X"}, {"models": ["a"]}, {"unchecked": ["a"]}])
def test_options_without_an_upstream_are_wrong_usage(given):
    with pytest.raises(typer.BadParameter):
        upstream(None, **given)


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
def test_half_a_name_is_wrong_usage(run, models):
    named = ("--upstream-model", *models)
    result = serve(run, "--upstream", "http://127.0.0.1:8000", *named)
    assert result.exit_code == 2
    assert "NAME or NAME=UPSTREAM" in " ".join(result.output.split())


def test_what_cannot_hold_is_told_without_secrets(monkeypatch):
    monkeypatch.setenv("UP_KEY", "two words")
    with pytest.raises(ConfigurationError, match="printable") as caught:
        settings_of(key_env="UP_KEY")
    assert "two words" not in str(caught.value)
    with pytest.raises(ConfigurationError, match="--upstream: the upstream's address"):
        settings_of("ftp://host")
    with pytest.raises(ConfigurationError, match="no user"):
        settings_of("http://user:secret@host/v1")
