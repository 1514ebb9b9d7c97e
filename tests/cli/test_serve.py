from __future__ import annotations

import pytest

TOKEN = "0123456789abcdef"


@pytest.fixture(autouse=True)
def _no_model(monkeypatch):
    """None of these gets as far as a model."""

    def load(*_args, **_more):
        raise AssertionError("the model was loaded")

    monkeypatch.setattr("guardrail.model.load.load_model", load)
    monkeypatch.delenv("GUARDRAIL_API_KEYS", raising=False)
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
    ],
)
def test_wrong_usage_is_told_before_a_model_is_loaded(options, told, run):
    result = serve(run, *options)
    assert result.exit_code == 2
    assert told in result.output


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


def test_options_come_from_the_environment_too(run, monkeypatch):
    monkeypatch.setenv("GUARDRAIL_SERVE_HOST", "0.0.0.0")
    result = serve(run)
    assert "0.0.0.0 can be reached" in " ".join(result.output.split())
