"""A random model of a real size as a folder that vLLM loads: `vllm_shape.py FOLDER SHAPE DEVICE`.

It goes to FOLDER/SHAPE, with an artefact beside it whose thresholds no score reaches. (vLLM loads
no LLaVA that transformers has saved, which is what `examples/benchmarks/shapes.py` builds.)
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import transformers

from guardrail.testing import tiny_artefact, tiny_processor
from tests.families import catalogue  # noqa: F401  (registers the family)

NEVER = 1e6
PICTURE = 448  # pixels a side at most: 256 tokens
_TEXT = (
    *("num_hidden_layers", "hidden_size", "intermediate_size"),
    *("num_attention_heads", "num_key_value_heads", "vocab_size"),
)
_VISION = ("depth", "hidden_size", "intermediate_size", "num_heads")
SHAPES = {  # the first is Qwen2.5-VL-7B's
    "7b": ((28, 3584, 18_944, 28, 4, 152_064), (32, 1280, 3420, 16)),
    "112m": ((12, 768, 2304, 12, 4, 8192), (4, 512, 1024, 8)),
    "300m": ((16, 896, 4864, 14, 2, 8192), (4, 512, 1024, 8)),
    "tiny": ((4, 256, 512, 4, 2, 1024), (2, 128, 256, 2)),
}


def main() -> None:
    """Build, and write."""
    write(Path(sys.argv[1]), sys.argv[2], device=sys.argv[3])


def write(
    folder: Path,
    name: str,
    *,
    device: str = "cpu",
    dtype: torch.dtype = torch.bfloat16,
    picture: int = PICTURE,
) -> None:
    """Build a shape, its processor for pictures of so many pixels a side at most, its artefact."""
    processor: Any = tiny_processor("qwen2_5_vl")
    processor.image_processor.size = {"shortest_edge": 56**2, "longest_edge": picture**2}
    words = processor.tokenizer
    torch.manual_seed(0)
    with torch.device(device):
        model: Any = transformers.AutoModelForImageTextToText.from_config(
            config(*SHAPES[name], words), dtype=dtype
        )
    head = model.get_output_embeddings().weight.data
    head[len(words) :] = 0.0  # no answer has a token that has no word
    head[words.all_special_ids] = 0.0
    model.eval().save_pretrained(folder / name)
    processor.save_pretrained(folder / name)
    made = tiny_artefact(model, processor, tau_steer=NEVER, tau_flag=NEVER)
    made.save(folder / f"{name}.guard.safetensors")


def config(text: tuple[int, ...], vision: tuple[int, ...], words: Any) -> Any:
    """A configuration of the family; the tokenizer's numbers are those of the tiny model."""
    names = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    start, end, image, video = words.convert_tokens_to_ids([*names])
    said = dict(zip(_TEXT, text, strict=True))
    eighth = said["hidden_size"] // said["num_attention_heads"] // 8
    sections = [eighth, eighth * 3 // 2, eighth * 3 // 2]
    made: Any = transformers.Qwen2_5_VLConfig
    return made(
        text_config={
            **said,
            "rope_parameters": {"rope_type": "default", "mrope_section": sections},
            "max_position_embeddings": 4096,
            "pad_token_id": words.pad_token_id,
            "eos_token_id": words.eos_token_id,
            "bos_token_id": None,
        },
        vision_config={
            **dict(zip(_VISION, vision, strict=True)),
            "out_hidden_size": said["hidden_size"],
            "patch_size": 14,
        },
        image_token_id=image,
        video_token_id=video,
        vision_start_token_id=start,
        vision_end_token_id=end,
        tie_word_embeddings=False,
    )


if __name__ == "__main__":
    main()
