"""Tiny models as folders, with heads as wide as vLLM takes: `models.py FOLDER NAME...`."""

import sys
from pathlib import Path

import torch

from guardrail.testing import families

# What the builders are made of, before any of them is imported.
families.HEAD, families.HIDDEN = 32, 128
families.MROPE["mrope_section"] = [4, 6, 6]

from guardrail.testing import tiny_artefact, tiny_model  # noqa: E402
from tests.families import catalogue  # noqa: E402, F401  (registers the other families)


def main() -> None:
    """Write each model, its processor, and an artefact of it."""
    folder = Path(sys.argv[1])
    for name in sys.argv[2:]:
        torch.manual_seed(0)
        model, processor = tiny_model(name)
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
        tiny_artefact(model, processor).save(folder / f"{name}.guard.safetensors")


if __name__ == "__main__":
    main()
