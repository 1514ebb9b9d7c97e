"""What the guard costs: guarded and plain runs of the same work, interleaved in one run.

python examples/benchmarks/bench.py --model FOLDER --out FOLDER

Ratios are medians of paired runs; absolute times are this machine's.
"""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Annotated

import typer
from pairing import Job, cost, paired
from rich.console import Console
from rich.table import Table

from guardrail import Guard, Policy, Thresholds
from guardrail.fit.collect import Collector, text_request
from guardrail.fit.dataset import packaged
from guardrail.inputs.messages import to_request
from guardrail.model.encode import Encoder
from guardrail.model.generate import generate_rows, last_residuals
from guardrail.model.load import LoadedModel, load_model
from guardrail.model.settings import Settings
from guardrail.types import Modality

EXAMPLES = Path(__file__).parents[1]
sys.path[:0] = [str(EXAMPLES), str(EXAMPLES / "tiny_vlm")]
from comparing import FOLLOW
from demo import artefact_for
from render import render

TOKENS = 64
CALLERS = 8
FIT_PROMPTS = 256
console = Console(width=120)


def quiet() -> Policy:
    """A policy that judges everything and changes nothing, so that both sides do the same work."""
    never = Thresholds(steer=1e6, flag=1e6)
    both = {Modality.TEXT: never, Modality.IMAGE: never}
    return Policy(thresholds=both)


def clocked(one: Job, other: Job, repeats: int) -> dict[str, float]:
    """Both jobs in turn: median seconds of each, and of their ratio with quartiles."""
    found = paired(one, other, repeats=repeats, device="cpu")
    wall = found["wall"]
    return {
        "first_s": found["first_s"],
        "second_s": found["second_s"],
        "ratio": wall["ratio"],
        "ratio_low": wall["low"],
        "ratio_high": wall["high"],
        "repeats": repeats,
    }


class Bench:
    """One model, plain and behind a guard."""

    def __init__(self, loaded: LoadedModel, guard: Guard) -> None:
        image = render("Write a short note about the weather in spring.", seed=3)
        parts = [{"type": "image", "image": image}, {"type": "text", "text": FOLLOW}]
        self.messages = [{"role": "user", "content": parts}]
        self.loaded, self.guard, self.encoder = loaded, guard, Encoder(loaded)

    def plain(self, tokens: int) -> object:
        """The model's own generate, from messages to token ids."""
        request = to_request(self.messages, policy=self.guard.policy)
        encoded = self.encoder.encode([request])
        return generate_rows(
            self.loaded, encoded, None, Settings(max_new_tokens=tokens, do_sample=False)
        )

    def guarded(self, tokens: int) -> object:
        """The same through the guard: queue, worker, hooks, verdict."""
        return self.guard.generate(self.messages, max_new_tokens=tokens, do_sample=False)

    def prefill(self) -> object:
        """All layers of the prompt, nothing after them."""
        request = to_request(self.messages, policy=self.guard.policy)
        return last_residuals(self.loaded, self.encoder.encode([request]))

    def check(self) -> object:
        """The verdict alone."""
        return self.guard.check(self.messages)

    def callers(self, together: bool) -> None:
        """Eight requests, at once from eight threads or one after the other."""
        if not together:
            for _ in range(CALLERS):
                self.guarded(16)
            return
        threads = [threading.Thread(target=self.guarded, args=(16,)) for _ in range(CALLERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def collect(self) -> object:
        """The residuals of 256 contrast prompts, which is what a fit waits for."""
        prompts = [text_request(prompt.text) for prompt in packaged()[:FIT_PROMPTS]]
        return Collector(self.loaded)(prompts, "bench")


def main(
    model: Annotated[Path, typer.Option(help="the assembled tiny VLM")],
    out: Annotated[Path, typer.Option(help="where the artefact and the figures go")],
    repeats: Annotated[int, typer.Option(help="paired runs of each comparison")] = 9,
) -> None:
    """Run every comparison and print the ratios side by side."""
    out.mkdir(parents=True, exist_ok=True)
    loaded = load_model(model, trust_remote_code=True)
    artefact = artefact_for(loaded, out / "tiny_vlm.guard.safetensors", out / "work")
    with Guard(loaded, artefact, policy=quiet()) as guard:
        bench = Bench(loaded, guard)
        found = {
            "guarded / plain, first token": clocked(
                lambda: bench.guarded(1), lambda: bench.plain(1), 2 * repeats
            ),
            f"guarded / plain, {TOKENS} tokens": clocked(
                lambda: bench.guarded(TOKENS), lambda: bench.plain(TOKENS), repeats
            ),
            "check / prefill": clocked(bench.check, bench.prefill, 2 * repeats),
            f"{CALLERS} callers at once / in turn": clocked(
                lambda: bench.callers(True), lambda: bench.callers(False), max(3, repeats // 3)
            ),
        }
        fit_seconds = cost(bench.collect, "cpu").wall
    layers = len(artefact.tensors["direction"])
    deepest = artefact.header.readout.layers[-1]
    table = Table("comparison", "first, s", "second, s", "ratio (quartiles)", "runs")
    for name, r in found.items():
        spread = f"{r['ratio']:.3f} ({r['ratio_low']:.3f}-{r['ratio_high']:.3f})"
        table.add_row(
            name, f"{r['first_s']:.3f}", f"{r['second_s']:.3f}", spread, str(r["repeats"])
        )
    console.print(table)
    console.print(
        f"check reads layer {deepest} of {layers}: (l+1)/L = {(deepest + 1) / layers:.3f}"
    )
    console.print(f"residuals of {FIT_PROMPTS} prompts for a fit: {fit_seconds:.1f} s")
    saved = found | {"fit_seconds": {"value": fit_seconds, "prompts": FIT_PROMPTS}}
    (out / "bench.json").write_text(json.dumps(saved, indent=1))


if __name__ == "__main__":
    typer.run(main)
