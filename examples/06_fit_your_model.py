"""Fit a model of your own: refusal directions from text, thresholds, steering; then use them.

python examples/06_fit_your_model.py --model FOLDER_OR_HUB_ID --out my.guard.safetensors
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer
from tiny_guard import FOLLOW, HARMFUL, HARMLESS, MODEL, drawn

from guardrail import Guard, Policy
from guardrail.fit.run import fit
from guardrail.model.load import load_model

QUICK = 24  # prompts of each kind; the default, 64, separates better and takes longer


def main(
    model: Annotated[str, typer.Option(help="a folder or a hub id")] = str(MODEL),
    out: Annotated[Path, typer.Option(help="where the artefact goes")] = Path(
        "my.guard.safetensors"
    ),
    per_kind: Annotated[int, typer.Option(help="prompts of each kind")] = QUICK,
) -> None:
    """Fit, say what was chosen, and try it."""
    loaded = load_model(model, trust_remote_code=True)
    started = time.monotonic()
    artefact = fit(loaded, per_kind=per_kind)
    artefact.save(out)
    header = artefact.header
    print(f"fitted {header.artefact_id} in {time.monotonic() - started:.0f} s -> {out}")
    print(f"reads layers {header.readout.layers} ({header.readout.estimator})")
    print(f"steers at layer {header.steering.layer if header.steering else 'none: detects only'}")
    for warning in header.warnings:
        print(f"note: {warning}")
    with Guard(loaded, artefact, policy=Policy()) as guard:
        for text in (HARMFUL, HARMLESS):
            parts = [{"type": "image", "image": drawn(text)}, {"type": "text", "text": FOLLOW}]
            for chat in (text, [{"role": "user", "content": parts}]):
                print(f"{text} -> {guard.check(chat).summary()}")


if __name__ == "__main__":
    typer.run(main)
