from __future__ import annotations

import sys

import pytest


@pytest.mark.parametrize(
    "words",
    [
        ("start", "no/such/model", "-a", "no/such/artefact"),
        ("update", "-a", "no/such/artefact"),
        ("status",),
        ("stop",),
    ],
    ids=lambda words: words[0],
)
def test_without_ray_its_extra_is_named(run, monkeypatch, words):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # set by the command; put back at the end
    for name in [name for name in sys.modules if name.startswith("guardrail.cluster.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    done = run("cluster", *words)
    assert done.exit_code == 2
    assert "guardrail-vlm[ray]" in done.stderr
