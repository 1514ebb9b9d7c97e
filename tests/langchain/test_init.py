"""The package: what it needs, what it gives."""

from __future__ import annotations

import os
import subprocess
import sys

import guardrail_langchain
import pytest


def python(*lines: str) -> subprocess.CompletedProcess[str]:
    # The paths of this process, so that another LangChain on them is the one that is tested.
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )


def test_every_public_name_is_there() -> None:
    assert guardrail_langchain.__all__ == sorted(guardrail_langchain.__all__)
    for name in guardrail_langchain.__all__:
        assert getattr(guardrail_langchain, name) is not None


@pytest.mark.parametrize("missing", ["langchain_core", "langchain"])
def test_a_missing_framework_names_the_extra(missing: str) -> None:
    done = python("import sys", f"sys.modules[{missing!r}] = None", "import guardrail_langchain")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert "MissingExtraError" in last
    assert "pip install 'guardrail-vlm[langchain]'" in last


def test_it_needs_no_other_framework() -> None:
    done = python(
        "import sys",
        "sys.modules['llama_index'] = sys.modules['starlette'] = None",
        "import guardrail_langchain",
        "print('fine')",
    )
    assert done.stdout == "fine\n", done.stderr
