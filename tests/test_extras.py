from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

from guardrail.errors import MissingExtraError
from guardrail.extras import EXTRA_OF, require

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"
MODULE_OF = {  # where the distribution's name is not the module's
    "openai-agents": "agents",
    "pydantic-ai-slim": "pydantic_ai",
    "langchain-core": "langchain_core",
    "llama-index-core": "llama_index",
    "llama-index-workflows": "workflows",
    "opentelemetry-api": "opentelemetry",
    "opentelemetry-exporter-otlp-proto-http": "opentelemetry",
    "opentelemetry-sdk": "opentelemetry",
    "prometheus-client": "prometheus_client",
    "python-multipart": "python_multipart",
    "pyyaml": "yaml",
    "scikit-learn": "sklearn",
}


def test_the_map_agrees_with_the_extras_of_pyproject():
    extras = tomllib.loads(PYPROJECT.read_text())["project"]["optional-dependencies"]
    declared = {
        (MODULE_OF.get(name, name), extra)
        for extra, requirements in extras.items()
        for name in (re.split(r"[^\w.-]", requirement)[0].lower() for requirement in requirements)
        if name != "guardrail-vlm"  # an extra that includes others
    }
    assert set(EXTRA_OF.items()) <= declared
    assert {module for module, _ in declared} == EXTRA_OF.keys()


def test_require_returns_the_module():
    assert require("yaml").safe_load("a: 1") == {"a": 1}


def test_a_missing_module_names_its_extra_and_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)  # how Python marks what cannot be imported
    with pytest.raises(MissingExtraError, match=r"pip install 'guardrail-vlm\[yaml\]'") as caught:
        require("yaml")
    assert (caught.value.module, caught.value.extra) == ("yaml", "yaml")


def test_a_broken_installation_is_not_called_a_missing_extra(monkeypatch, tmp_path):
    (tmp_path / "httpx.py").write_text("import a_dependency_of_httpx_that_is_gone")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "httpx", raising=False)
    with pytest.raises(ModuleNotFoundError, match="that_is_gone") as caught:
        require("httpx")
    assert not isinstance(caught.value, MissingExtraError)


def test_a_module_that_no_extra_brings_is_a_key_error():
    with pytest.raises(KeyError):
        require("json")
