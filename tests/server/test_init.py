from __future__ import annotations

import subprocess
import sys

WITHOUT = """
import sys
for name in ("fastapi", "structlog", "uvicorn"):
    sys.modules[name] = None
from guardrail.errors import MissingExtraError
"""


def ran(code):
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_settings_load_no_web_framework():
    code = "import sys, guardrail.server.settings as s; s.ServerSettings()\n"
    assert ran(code + "print({'fastapi', 'starlette', 'uvicorn'} & set(sys.modules))") == "set()\n"
    assert "web" in ran(
        WITHOUT + "from guardrail.server import ServerSettings as S; print(S(model_name='web'))"
    )


def test_what_needs_the_extra_names_it():
    for name in ("create_app", "logs"):
        code = f"try: from guardrail.server import {name}\nexcept MissingExtraError as e: print(e)"
        assert "guardrail-vlm[serve]" in ran(WITHOUT + code)


def test_a_name_that_is_not_there_is_told_as_python_does():
    code = "import guardrail.server as s\ntry: s.nothing\nexcept AttributeError as e: print(e)"
    assert "nothing" in ran(code)
