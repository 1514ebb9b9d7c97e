"""What the guard costs on a model of a real size, with random weights.

python examples/benchmarks/shape_bench.py --shape 300m --out FOLDER [--device cpu] [--readme FILE]

Guarded and plain runs are interleaved; a ratio is the median of paired runs, with quartiles.
Times are never checked. That both sides write the same tokens is.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import tables
import torch
import typer
from pairing import Job, paired, peak_bytes
from shape_table import described, table
from shapes import SHAPES, Shape, build, chats

from guardrail import Guard
from guardrail.decide.detector import Detector
from guardrail.inputs.messages import to_request
from guardrail.model.encode import Encoded, Encoder, on_device
from guardrail.model.generate import check_rows, generate_rows, last_residuals
from guardrail.model.hooks import PromptHooks, check_layers
from guardrail.model.load import LoadedModel
from guardrail.model.settings import Settings
from guardrail.testing import tiny_artefact

TOKENS = 64
NEVER = 1e6  # a threshold that no score reaches: everything is judged and nothing is changed


class ShapeBench:
    """One random model, plain and behind a guard that lets everything pass."""

    def __init__(self, shape: Shape, *, device: str, dtype: torch.dtype) -> None:
        self.shape, self.device = shape, device
        self.loaded: LoadedModel = build(shape, device=device, dtype=dtype)
        model, processor = self.loaded.model, self.loaded.processor
        artefact = tiny_artefact(model, processor, tau_steer=NEVER, tau_flag=NEVER)
        self.guard = Guard((model, processor), artefact)
        self.encoder = Encoder(self.loaded)
        self.detector = Detector.from_artefact(artefact, self.guard.policy)
        self.hooks = PromptHooks(model, check_layers(self.detector, model))

    def close(self) -> None:
        """Take all hooks off the model."""
        self.hooks.remove()
        self.guard.close()

    def encoded(self, batch: int, pictures: int) -> Encoded:
        """A batch of chats as the model takes them."""
        asked = chats(self.shape, batch=batch, pictures=pictures)
        return self.encoder.encode([to_request(a, policy=self.guard.policy) for a in asked])

    def plain(self, encoded: Encoded, tokens: int) -> list[tuple[int, ...]]:
        """The answers of the model's own `generate`, as without this package."""
        return self._generate(on_device(encoded, self.loaded.device, self.loaded.dtype), tokens)

    def compiled(self, encoded: Encoded, tokens: int) -> list[tuple[int, ...]]:
        """The same with a static cache, whose decoding steps transformers compiles on a GPU."""
        inputs = on_device(encoded, self.loaded.device, self.loaded.dtype)
        return self._generate(inputs, tokens, cache_implementation="static")

    def _generate(
        self, inputs: Mapping[str, Any], tokens: int, **options: Any
    ) -> list[tuple[int, ...]]:
        model: Any = self.loaded.model
        ids = model.generate(**inputs, max_new_tokens=tokens, do_sample=False, **options)
        return [tuple(row) for row in ids[:, inputs["input_ids"].shape[1] :].tolist()]

    def guarded(self, encoded: Encoded, tokens: int) -> list[tuple[int, ...]]:
        """The same batch, judged inside its prefill."""
        rows = generate_rows(
            self.loaded,
            encoded,
            self.detector,
            Settings(max_new_tokens=tokens, do_sample=False),
            policy=self.guard.policy,
            hooks=self.hooks,
        )
        return [tuple(row.token_ids) for row in rows]

    def scores(self, encoded: Encoded) -> list[float]:
        """The scores of a batch, in a pass that ends behind the readout."""
        rulings = check_rows(
            self.loaded, encoded, self.detector, policy=self.guard.policy, hooks=self.hooks
        )
        return [float(r.decision.scores[r.row]) for r in rulings]  # type: ignore[union-attr]

    def whole(self, pictures: int, tokens: int) -> tuple[Job, Job]:
        """From a chat to an answer: the guard with its queue and thread, and the model alone."""
        (asked,) = chats(self.shape, batch=1, pictures=pictures)

        def alone() -> object:
            processor: Any = self.loaded.processor
            inputs = processor.apply_chat_template(
                asked,
                tokenize=True,
                return_dict=True,
                return_tensors="pt",
                add_generation_prompt=True,
            ).to(self.loaded.device, self.loaded.dtype)
            return processor.batch_decode(self._generate(inputs, tokens), skip_special_tokens=True)

        return lambda: self.guard.generate(asked, max_new_tokens=tokens, temperature=0), alone


def measure(
    bench: ShapeBench, *, batches: Sequence[int], pictures: Sequence[int], repeats: int
) -> Iterator[dict[str, Any]]:
    """Every comparison, one after the other; a batch that does not fit into memory says so."""
    for count in pictures:
        for batch in batches:
            about = {"batch": batch, "pictures": count}
            fits = True
            try:
                for row in _comparisons(bench, batch, count, repeats):
                    yield about | row
            except torch.OutOfMemoryError:
                fits = False  # what the error holds on to is free once it is gone, below
            if not fits:
                torch.cuda.empty_cache()
                yield about | {"what": "does not fit into memory"}


def _comparisons(
    bench: ShapeBench, batch: int, pictures: int, repeats: int
) -> Iterator[dict[str, Any]]:
    device, encoded = bench.device, bench.encoded(batch, pictures)
    for tokens in (1, TOKENS):
        plain, guarded = bench.plain(encoded, tokens), bench.guarded(encoded, tokens)
        if plain != guarded:
            raise SystemExit(f"guarded and plain answers differ (batch {batch}, {tokens} tokens)")
        first, second = _jobs(bench, encoded, tokens)
        if batch == 1:
            first, second = bench.whole(pictures, tokens)
        yield {
            "what": "guarded / plain, first token" if tokens == 1 else _long(tokens),
            "prompt_tokens": encoded.prompt_len,
            "peak_guarded": peak_bytes(first, device),
            "peak_plain": peak_bytes(second, device),
            **paired(first, second, repeats=repeats, device=device),
        }
    if device.startswith("cuda") and batch == 1:  # what a guard's uncompiled steps forgo
        yield {
            "what": f"guarded / plain with compiled decoding, {TOKENS} tokens",
            "prompt_tokens": encoded.prompt_len,
            **paired(
                lambda: bench.guarded(encoded, TOKENS),
                lambda: bench.compiled(encoded, TOKENS),
                repeats=repeats,
                device=device,
            ),
        }
    yield {
        "what": "check / prefill of all layers",
        "prompt_tokens": encoded.prompt_len,
        **paired(
            lambda: bench.scores(encoded),
            lambda: last_residuals(bench.loaded, encoded),
            repeats=repeats,
            device=device,
        ),
    }


def _jobs(bench: ShapeBench, encoded: Encoded, tokens: int) -> tuple[Job, Job]:
    return lambda: bench.guarded(encoded, tokens), lambda: bench.plain(encoded, tokens)


def _long(tokens: int) -> str:
    return f"guarded / plain, {tokens} tokens"


def bench_of(
    shape: str,
    *,
    device: str,
    dtype: str,
    batches: Sequence[int],
    pictures: Sequence[int],
    repeats: int,
) -> dict[str, Any]:
    """Build, measure, describe; the model is gone afterwards."""
    bench = ShapeBench(SHAPES[shape], device=device, dtype=getattr(torch, dtype))
    try:
        rows = []
        for row in measure(bench, batches=batches, pictures=pictures, repeats=repeats):
            rows.append(row)
            print(json.dumps(row), flush=True)
        return {**described(bench.shape, bench.loaded), "rows": rows}
    finally:
        bench.close()


def main(
    out: Annotated[Path, typer.Option(help="where the figures go")],
    shape: Annotated[str, typer.Option(help=", ".join(SHAPES))] = "300m",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
    dtype: Annotated[list[str] | None, typer.Option(help="float32, bfloat16; repeatable")] = None,
    batch: Annotated[list[int] | None, typer.Option(help="rows at a time; repeatable")] = None,
    pictures: Annotated[list[int] | None, typer.Option(help="in a request; repeatable")] = None,
    repeats: Annotated[int, typer.Option(help="paired runs of each comparison")] = 9,
    readme: Annotated[Path | None, typer.Option(help="whose table is replaced")] = None,
) -> None:
    """Measure, print a table, and write it down."""
    kinds = dtype or (["bfloat16"] if device.startswith("cuda") else ["float32", "bfloat16"])
    runs = [
        bench_of(
            shape,
            device=device,
            dtype=kind,
            batches=batch or [1],
            pictures=pictures or [1],
            repeats=repeats,
        )
        for kind in kinds
    ]
    out.mkdir(parents=True, exist_ok=True)
    (out / f"shape_{shape}.json").write_text(json.dumps(runs, indent=1), "utf-8")
    lines = list(table(runs))
    print("", *lines, sep="\n")
    if readme is not None:
        tables.put(readme, "shapes", lines)


if __name__ == "__main__":
    typer.run(main)
