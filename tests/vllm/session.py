"""One engine in a process of its own: `session.py FOLDER FAMILY CASE` tells JSON on its last line.

CASE is JSON: `options` of `vllm.LLM`, `thresholds`, and `without` (parts of the guard that are left
out). Chats are those of `chats`, asked twice, so that the second time finds cached blocks.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

if os.environ.get("SECOND_RUNNER"):
    import second_runner  # noqa: F401

from vllm import LLM, SamplingParams
from vllm.sampling_params import StructuredOutputsParams

from guardrail.policy import Policy
from guardrail.vllm import engine_options
from tests.vllm.said import chats

ANSWER = SamplingParams(max_tokens=8, temperature=0, ignore_eos=True)


def told(outputs: list[Any]) -> list[dict[str, Any]]:
    """Of each answer what a client hears, and from how many cached tokens."""
    return [
        {
            "verdict": (one.kv_transfer_params or {}).get("guardrail"),
            "cached": one.num_cached_tokens,
            "answers": [
                {
                    "tokens": list(answer.token_ids),
                    "text": answer.text,
                    "finish": answer.finish_reason,
                    "stop": answer.stop_reason,
                    "logprobs": bool(answer.logprobs),
                }
                for answer in one.outputs
            ],
        }
        for one in outputs
    ]


def main() -> None:
    """Start the engine, ask, and tell."""
    folder, family, case = Path(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    policy = Policy.model_validate(case["policy"])
    given = engine_options(
        folder / f"{family}.guard.safetensors",
        policy,
        scores=case.get("scores", True),
        audit=case.get("audit"),
    )
    for name in case.get("without", ()):
        del given[name]
    fixed = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 8, "block_size": 32}
    fixed |= {"max_num_batched_tokens": 512, "enforce_eager": True, "max_logprobs": -1}
    llm = LLM(str(folder / family), **{**fixed, **given, **case.get("options", {})})
    pictures = family != "llama"
    asked = chats(pictures, "image_pil")

    def answers(settings: SamplingParams) -> list[dict[str, Any]]:
        form = "openai" if pictures else "string"
        return told(llm.chat(asked, settings, use_tqdm=False, chat_template_content_format=form))

    compiled = llm.llm_engine.vllm_config.compilation_config
    found: dict[str, Any] = {"graphs": compiled.cudagraph_mode.name}
    for run in ("cold", "warm"):
        found[run] = answers(ANSWER)
    metrics = (
        {m.name: m.value for m in llm.get_metrics() if hasattr(m, "value")}
        if case.get("metrics")
        else {}
    )
    found["preemptions"] = metrics.get("vllm:num_preemptions", 0)
    for name, settings in SETTINGS.items() if case.get("settings") else ():
        found[name] = answers(settings)
    if case.get("shared"):
        found["shared"] = shared(llm, int(case["shared"]))
    sys.stdout.write(json.dumps(found) + "\n")


SETTINGS = {
    "sampled": SamplingParams(max_tokens=6, temperature=1.0, n=3, seed=1),
    "at least": SamplingParams(max_tokens=8, min_tokens=6, temperature=0),
    "log-probabilities": SamplingParams(max_tokens=4, temperature=0, logprobs=2, prompt_logprobs=2),
    "one token": SamplingParams(max_tokens=1, temperature=0),
    "choice": SamplingParams(
        max_tokens=8,
        temperature=0,
        structured_outputs=StructuredOutputsParams(choice=["the dog", "the cat"]),
    ),
}


def shared(llm: Any, length: int) -> dict[str, Any]:
    """Log-probabilities of a prompt before and after one that begins it was answered, steered.

    That ends within a block, which its answer completes: no other request fills it alike.
    """
    first = SamplingParams(max_tokens=1, temperature=0, logprobs=-1)

    def ask(tokens: list[int], settings: SamplingParams) -> Any:
        return llm.generate([{"prompt_token_ids": tokens}], settings, use_tqdm=False)[0]

    for start in range(5, 60):
        ids = [start + i % 40 for i in range(length)]
        short = ask(ids, ANSWER)
        if short.kv_transfer_params["guardrail"]["action"] == "steer":  # an edit can reach it
            break
    longer = [*ids, *short.outputs[0].token_ids, *ids[:30]]
    llm.llm_engine.reset_prefix_cache()
    clean = ask(longer, first)
    llm.llm_engine.reset_prefix_cache()
    ask(ids, ANSWER)
    after = ask(longer, first)
    one, other = (found.outputs[0].logprobs[0] for found in (clean, after))
    return {
        "action": short.kv_transfer_params["guardrail"]["action"],
        "longer": after.kv_transfer_params["guardrail"]["action"],
        "cached": after.num_cached_tokens,
        "apart": max(abs(one[t].logprob - other[t].logprob) for t in one if t in other),
    }


if __name__ == "__main__":
    main()
