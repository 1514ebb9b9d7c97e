"""What the packages of doors need, and what they give."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib import import_module

import pytest

DOORS = {
    "guardrail_agents": ("agents", "agents"),
    "guardrail_pydantic_ai": ("pydantic_ai", "pydantic-ai"),
}
each_door = pytest.mark.parametrize("door", list(DOORS))


@each_door
def test_every_public_name_is_there(door):
    package = import_module(door)
    assert all(getattr(package, name) is not None for name in package.__all__)


@each_door
def test_without_its_framework_the_extra_is_named(door):
    module, extra = DOORS[door]
    lines = [
        "import sys",
        f"sys.modules[{module!r}] = None",
        "from guardrail.errors import MissingExtraError",
        "try:",
        f"    import {door}",
        "except MissingExtraError as error:",
        "    print(error.extra, '|', error)",
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        timeout=120,
        # The paths of this process, so that another release on them is the one that is tested.
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))),
        check=False,
    )
    assert done.stdout.startswith(f"{extra} | {module!r} is not installed"), done.stderr
    assert f"pip install 'guardrail-vlm[{extra}]'" in done.stdout
