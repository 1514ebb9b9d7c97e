"""A random model of a real size on the accelerator, once for all tests of this folder.

`make test-gpu` runs them. `GUARDRAIL_SHAPE=tiny GUARDRAIL_DEVICE=cpu` runs their code anywhere.
Those of vLLM are in an environment of its own: see `test_vllm_gpu.py`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BENCHMARKS = Path(__file__).parents[2] / "examples" / "benchmarks"


@pytest.fixture(scope="session")
def device() -> str:
    """Where the tests run; they are skipped where there is no accelerator."""
    asked = os.environ.get("GUARDRAIL_DEVICE")
    if asked is None and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device; set GUARDRAIL_DEVICE to use another one")
    return asked or "cuda"


@pytest.fixture(scope="session")
def shape_name() -> str:
    return os.environ.get("GUARDRAIL_SHAPE", "7b")


@pytest.fixture(scope="session")
def shape_bench() -> Any:
    """The module of the example, which does the measuring."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import shape_bench as module
    finally:
        sys.path.remove(str(BENCHMARKS))
    return module


@pytest.fixture(scope="session")
def bench(shape_bench: Any, shape_name: str, device: str) -> Iterator[Any]:
    """The model in bfloat16, with a guard that lets everything pass."""
    shape = shape_bench.SHAPES[shape_name]
    made = shape_bench.ShapeBench(shape, device=device, dtype=torch.bfloat16)
    yield made
    made.close()


@pytest.fixture
def tell(capsys: pytest.CaptureFixture[str]) -> Callable[[str], object]:
    """Prints past pytest: figures are told, not checked."""

    def write(text: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{text}\n")

    return write
