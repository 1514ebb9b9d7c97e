"""Tiny models as folders, with heads as wide as vLLM takes: `models.py FOLDER NAME...`.

`TINY_HEAD` is how wide, `TINY_SCALE` by how much weights are smaller than a tiny model's: matrices
that stretch what they are given let the rounding of half precision grow from layer to layer.
"""

import os
import sys
from pathlib import Path

import torch

from guardrail.testing import families

HEAD = int(os.environ.get("TINY_HEAD", "32"))
SCALE = float(os.environ.get("TINY_SCALE", "1"))
# What the builders are made of, before any of them is imported.
families.HEAD, families.HIDDEN = HEAD, 4 * HEAD
families.MROPE["mrope_section"] = [HEAD // 8, 3 * HEAD // 16, 3 * HEAD // 16]

from guardrail.testing import tiny_artefact, tiny_model  # noqa: E402
from tests.families import catalogue  # noqa: E402, F401  (registers the other families)


def main() -> None:
    """Write each model, its processor, and an artefact of it."""
    folder = Path(sys.argv[1])
    for name in sys.argv[2:]:
        torch.manual_seed(0)
        model, processor = tiny_model(name)
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(SCALE)
        model.save_pretrained(folder / name)
        processor.save_pretrained(folder / name)
        tiny_artefact(model, processor).save(folder / f"{name}.guard.safetensors")


if __name__ == "__main__":
    main()
