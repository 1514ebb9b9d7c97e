from __future__ import annotations

import subprocess
import sys

import guardrail


def test_help_lists_every_command_and_no_shell_completion(run):
    done = run("--help")
    assert done.exit_code == 0
    for command in ("fit", "calibrate", "check", "generate", "info"):
        assert f" {command} " in done.stdout
    assert "completion" not in done.stdout


def test_help_loads_no_library_of_tensors_or_pictures():
    code = (
        "import sys\n"
        "from guardrail.cli.main import app\n"
        "app(['--help'], standalone_mode=False)\n"
        "print({'torch', 'transformers', 'numpy', 'PIL', 'fastapi', 'ray'} & {*sys.modules})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.endswith("set()\n")


def test_version_is_the_packages(run):
    assert run("--version").stdout == f"guardrail-vlm {guardrail.__version__}\n"


def test_no_command_is_wrong_usage(run):
    assert run().exit_code == 2


def test_an_unknown_command_is_wrong_usage(run):
    assert run("chek").exit_code == 2


def test_the_package_runs_as_a_module():
    done = subprocess.run(
        [sys.executable, "-m", "guardrail", "--version"], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("guardrail-vlm ")


def test_a_reader_that_leaves_early_causes_no_traceback():
    code = (
        "from guardrail.cli.output import session, write\n"
        "import typer\n"
        "def body():\n"
        "    with session(debug=False) as out:\n"
        "        for _ in range(100_000):\n"
        "            write(out, 'x' * 100)\n"
        "typer.run(body)\n"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout.readline()
        child.stdout.close()
        errors = child.stderr.read()
        code = child.wait(timeout=60)
    assert (code, errors) == (2, "")
