"""The README's first code block runs and prints what the README says it prints."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_every_command_the_readme_names_is_a_target_or_a_command() -> None:
    from guardrail.cli.main import app

    text = (ROOT / "README.md").read_text("utf-8")
    targets = set(re.findall(r"^([a-z-]+):.*## ", (ROOT / "Makefile").read_text("utf-8"), re.M))
    assert set(re.findall(r"^make ([a-z-]+)", text, re.M)) <= targets
    commands = {command.name or command.callback.__name__ for command in app.registered_commands}
    commands |= {group.name for group in app.registered_groups}
    assert set(re.findall(r"^guardrail ([a-z]+)", text, re.M)) <= commands


@pytest.mark.slow
def test_the_first_code_block_prints_what_it_says() -> None:
    if not (ROOT / ".demo/tiny_vlm.guard.safetensors").exists():
        pytest.skip("run `make demo` first: the block uses what it leaves in .demo")
    text = (ROOT / "README.md").read_text("utf-8")
    code, said = re.findall(r"```(?:python|text)\n(.*?)```", text, re.S)[:2]
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"TRANSFORMERS_VERBOSITY": "error"},
    )
    numbers = re.compile(r"-?\d+\.\d+")
    assert numbers.sub("#", ran.stdout).strip() == numbers.sub("#", said).strip()
