"""The package: what it needs, what it gives."""

from __future__ import annotations

import os
import subprocess
import sys

import guardrail_llamaindex
import pytest


def python(*lines):
    # The paths of this process, so that another LlamaIndex on them is the one that is tested.
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path)))
    return subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        timeout=120,
        env=environment,
        check=False,
    )


def test_every_public_name_is_there():
    for name in guardrail_llamaindex.__all__:
        assert getattr(guardrail_llamaindex, name) is not None


@pytest.mark.parametrize("missing", ["llama_index", "llama_index.core"])
def test_without_llamaindex_the_extra_is_named(missing):
    done = python(
        "import sys",
        f"sys.modules[{missing!r}] = None",
        "from guardrail.errors import MissingExtraError",
        "try:",
        "    import guardrail_llamaindex",
        "except MissingExtraError as error:",
        "    print(error.extra, '|', error)",
    )
    assert done.stdout.startswith("llamaindex | 'llama_index.core' is not installed"), done.stderr
    assert "pip install 'guardrail-vlm[llamaindex]'" in done.stdout


def test_it_needs_no_langchain_and_leaves_llamaindexs_settings_alone():
    done = python(
        "import sys",
        "sys.modules['langchain'] = sys.modules['langchain_core'] = None",
        "import llama_index.core",
        "from llama_index.core import Settings",
        "before = repr(vars(Settings)), llama_index.core.global_tokenizer",
        "import guardrail_llamaindex",
        "print('tiktoken' in sys.modules, 'nltk' in sys.modules)",
        "print((repr(vars(Settings)), llama_index.core.global_tokenizer) == before)",
    )
    assert done.stdout == "False False\nTrue\n", done.stderr


def test_a_dependency_that_llamaindex_misses_is_not_blamed_on_the_extra():
    done = python("import sys", "sys.modules['filetype'] = None", "import guardrail_llamaindex")
    assert "MissingExtraError" not in done.stderr
    assert "filetype" in done.stderr
