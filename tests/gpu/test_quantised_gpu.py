"""Quantised weights on the accelerator: what is installed is tried, the rest says what it needs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from guardrail import Guard
from guardrail.model.fingerprint import fingerprint
from guardrail.model.load import load_model
from guardrail.testing import tiny_artefact

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.filterwarnings("default"),  # third parties' warnings are no finding here
]


def _bitsandbytes(**options: Any) -> Callable[[Any], Any]:
    def make(_processor: Any) -> Any:
        pytest.importorskip("bitsandbytes", reason="pip install bitsandbytes")
        from transformers import BitsAndBytesConfig

        return BitsAndBytesConfig(**options)

    return make


def _gptq(processor: Any) -> Any:
    pytest.importorskip("gptqmodel", reason="pip install gptqmodel optimum")
    pytest.importorskip("optimum", reason="pip install gptqmodel optimum")
    from transformers import GPTQConfig

    texts = [f"tell me about the cat and the dog in picture {i}" for i in range(32)]
    return GPTQConfig(bits=4, group_size=64, dataset=texts, tokenizer=processor.tokenizer)


METHODS = {
    "bitsandbytes int8": _bitsandbytes(load_in_8bit=True),
    "bitsandbytes nf4": _bitsandbytes(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
    ),
    "gptq int4": _gptq,
}


@pytest.fixture(scope="module")
def folder(
    shape_bench: Any, shape_name: str, device: str, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A saved model: small whatever the shape, since it is the mechanics that is looked at."""
    from shapes import build

    path: Path = tmp_path_factory.mktemp("plain")
    small = build(shape_bench.SHAPES["tiny"], device=device, dtype=torch.bfloat16)
    small.model.save_pretrained(path)
    small.processor.save_pretrained(path)
    return path


@pytest.mark.parametrize("method", METHODS)
def test_a_quantised_model_is_judged_and_recognised(
    folder: Path, shape_bench: Any, device: str, method: str
) -> None:
    plain = load_model(folder, device=device)
    config = METHODS[method](plain.processor)
    loaded = load_model(folder, device=device, quantization_config=config)
    assert loaded.device.type == torch.device(device).type
    before = fingerprint(loaded)
    assert before.quantisation == method.split()[0]
    assert "weights_digest" in fingerprint(plain).differences(before)
    asked = shape_bench.chats(shape_bench.SHAPES["tiny"], batch=3, pictures=1)
    artefact = tiny_artefact(loaded.model, loaded.processor, tau_steer=1e6, tau_flag=1e6)
    with Guard(loaded, artefact) as guard:
        together = [verdict.score for verdict in guard.check_batch(asked)]
        alone = [guard.check(one).score for one in asked]
        assert all(guard.generate(one, max_new_tokens=4).verdict.score for one in asked)
    assert together == pytest.approx(alone, abs=0.1)
    assert not before.differences(fingerprint(loaded))
