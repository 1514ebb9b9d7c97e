from __future__ import annotations

import subprocess
import sys

import pytest


def run(code):
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


@pytest.mark.parametrize("missing", ["starlette", "python_multipart"])
def test_a_missing_package_names_its_extra(missing):
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from guardrail.errors import MissingExtraError\n"
        "try:\n    import guardrail.asgi\n"
        "except MissingExtraError as error:\n    print(error.module, error)"
    )
    told = run(code)
    assert told.startswith(missing)
    assert "pip install 'guardrail-vlm[asgi]'" in told


def test_the_package_loads_no_web_framework_and_the_middleware_no_tensor_library():
    code = (
        "import sys, guardrail\n"
        "from guardrail import Policy, guarded\n"
        "print('starlette' in sys.modules)\n"
        "import guardrail.asgi\n"
        "print('torch' in sys.modules, 'fastapi' in sys.modules)"
    )
    assert run(code).split() == ["False", "False", "False"]
