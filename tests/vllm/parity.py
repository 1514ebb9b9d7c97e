"""A comparison in a process of its own: `parity.py FOLDER FAMILY DTYPE [CASE]` tells what it found.

CASE is JSON: more `options` of vLLM, and how transformers is `loaded`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from guardrail.artefact import Artefact
from guardrail.vllm.parity import compare

SMALL = {"enforce_eager": True, "max_model_len": 512, "max_num_seqs": 8, "block_size": 32}


def main() -> None:
    """Compare, save the artefact beside the old one, and tell."""
    folder, family, dtype = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    given = folder / f"{family}.guard.safetensors"
    case = json.loads(sys.argv[4]) if len(sys.argv) > 4 else {}
    options = {**SMALL, "dtype": dtype, "max_num_batched_tokens": 512, **case.get("options", {})}
    found, revised = compare(str(folder / family), given, options=options, **case.get("loaded", {}))
    kept = Artefact.load(revised.save(folder / f"{family}.{dtype}.guard.safetensors"))
    assert kept.header.extra["vllm"]["conclusion"] == str(found.conclusion)
    assert kept.header.parent == Artefact.load(given).header.artefact_id
    sys.stdout.write(found.model_dump_json() + "\n" + str(found.conclusion) + "\n")


if __name__ == "__main__":
    main()
