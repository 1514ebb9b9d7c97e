"""One engine under load: `vllm_load.py FOLDER NAME CASE` tells JSON on its last line.

CASE is JSON: `guarded` or not, `options` of vLLM, how many `tokens` each answer has, and how many
answers a client waits for at each number of `clients`. Every prompt begins with a number of its
own, so that none is found in the prefix cache, and every second one has a picture.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from transformers import AutoProcessor
from vllm import AsyncEngineArgs, SamplingParams
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.async_llm import AsyncLLM

from guardrail.vllm import engine_options

if TYPE_CHECKING:
    from collections.abc import Iterator

WORDS = "please tell me about the cat and the dog and what they do in this picture " * 4


def prompts(processor: Any) -> Iterator[dict[str, Any]]:
    """Without end, no two alike."""
    side = int(processor.image_processor.size["longest_edge"] ** 0.5)
    for number in count():
        shown = [{"type": "image"}] if number % 2 else []
        said = [*shown, {"type": "text", "text": f"{number} {WORDS}"}]
        text = processor.apply_chat_template(
            [{"role": "user", "content": said}], tokenize=False, add_generation_prompt=True
        )
        found: dict[str, Any] = {"prompt": text}
        if shown:
            noise = torch.randint(0, 256, (side, side, 3), dtype=torch.uint8).numpy()
            found["multi_modal_data"] = {"image": Image.fromarray(noise)}
        yield found


async def asked(engine: Any, prompt: Any, name: str, tokens: int) -> tuple[float, int, bool]:
    """Seconds to the first token of an answer, how many it has, and whether it was judged."""
    settings = SamplingParams(
        max_tokens=tokens, temperature=0, ignore_eos=True, output_kind=RequestOutputKind.DELTA
    )
    began, first, number, judged = time.perf_counter(), 0.0, 0, False
    async for output in engine.generate(prompt, settings, name):
        judged |= "guardrail" in (output.kv_transfer_params or {})
        number += len(output.outputs[0].token_ids)
        if number and not first:
            first = time.perf_counter() - began
    return first, number, judged


async def loaded(engine: Any, asks: Iterator[Any], clients: int, each: int, tokens: int) -> Any:
    """`clients` that ask one thing after another, `each` so many."""
    found: list[tuple[float, int, bool]] = []

    async def client(number: int) -> None:
        for turn in range(each):
            name = f"{clients}-{number}-{turn}-{time.monotonic_ns()}"
            found.append(await asked(engine, next(asks), name, tokens))

    began = time.perf_counter()
    await asyncio.gather(*map(client, range(clients)))
    took = time.perf_counter() - began
    return {
        "tokens_per_s": sum(number for _, number, _ in found) / took,
        "first_s": statistics.median(first for first, _, _ in found),
        "judged": sum(judged for *_, judged in found),
        "answers": len(found),
    }


async def measured(model: Path, artefact: Path, case: dict[str, Any]) -> dict[str, Any]:
    """Of each number of clients what they met."""
    inside = engine_options(artefact) if case["guarded"] else {}
    options = {**case["options"], **inside}
    engine = AsyncLLM.from_engine_args(AsyncEngineArgs(model=str(model), **options))
    asks, tokens = prompts(AutoProcessor.from_pretrained(model)), case["tokens"]
    try:
        most = max(map(int, case["clients"]))
        await loaded(engine, asks, most, 1, tokens)  # warm up
        return {
            clients: await loaded(engine, asks, int(clients), each, tokens)
            for clients, each in case["clients"].items()
        }
    finally:
        engine.shutdown()


def main() -> None:
    """Measure, and tell."""
    folder, name, case = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    artefact = folder / f"{name}.guard.safetensors"
    found = asyncio.run(measured(folder / name, artefact, case))
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
