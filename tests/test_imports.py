from __future__ import annotations

import importlib
import subprocess
import sys

import pytest

import guardrail

HEAVY = ("torch", "transformers", "langchain", "langchain_core", "llama_index", "matplotlib")


def _loaded_after(code: str) -> set[str]:
    """The modules a fresh interpreter holds after running `code`."""
    probe = f"import sys\n{code}\nprint('|'.join(sys.modules), file=sys.__stdout__)"
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60
    )
    return set(done.stdout.rsplit("\n", 2)[-2].split("|"))


def test_importing_the_package_loads_no_tensor_library_framework_or_command_line():
    loaded = _loaded_after("import guardrail")
    assert not loaded & {*HEAVY, "typer", "rich", "pydantic", "PIL"}


def test_settings_and_verdicts_are_usable_without_a_tensor_library():
    loaded = _loaded_after(
        "from guardrail import Policy, Verdict, GuardrailError, guarded\n"
        "from guardrail.policy.files import policy_from_env\n"
        "from guardrail.audit import AuditLog"
    )
    assert "pydantic" in loaded
    assert not loaded & set(HEAVY)


def test_a_guard_and_what_loads_its_model_are_imported_without_a_tensor_library():
    loaded = _loaded_after(
        "from guardrail import Guard, load_model\n"
        "from guardrail.guard import Guard\n"
        "from guardrail.model.load import LoadedModel, wrap_model"
    )
    assert not loaded & set(HEAVY)


def test_the_command_lines_help_loads_no_tensor_library():
    loaded = _loaded_after(
        "sys.argv = ['guardrail', '--help']\n"
        "from guardrail.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit as done:\n    assert not done.code"
    )
    assert "typer" in loaded
    assert not loaded & set(HEAVY)


def test_a_guard_without_a_model_loads_no_tensor_library():
    loaded = _loaded_after("from guardrail.testing import FakeGuard\nFakeGuard().check('hello')")
    assert not loaded & set(HEAVY)


@pytest.mark.parametrize("module", ["typer", "rich"])
def test_the_command_line_without_its_extra_says_what_to_install(module):
    code = (
        f"import sys; sys.modules[{module!r}] = None; from guardrail.__main__ import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr.strip().endswith("pip install 'guardrail-vlm[cli]'")
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("name", guardrail.__all__)
def test_every_public_name_resolves(name):
    assert getattr(guardrail, name) is not None


def test_every_error_is_public():
    errors = importlib.import_module("guardrail.errors")
    family = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, errors.GuardrailError)
    }
    assert family <= set(guardrail.__all__)


def test_all_is_sorted_and_listed_by_dir():
    assert guardrail.__all__ == sorted(guardrail.__all__)
    assert set(guardrail.__all__) <= set(dir(guardrail))


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Gaurd'"):
        _ = guardrail.Gaurd
