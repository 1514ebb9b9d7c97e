"""The files of the assembled model: weights, configuration, processor and code."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from backbone import language_model, text_config, with_lora
from gguf_reader import GGUFFile
from processing import IMAGE_TOKEN_ID, SLOTS, processor
from safetensors.torch import load_file, save_file
from torch import Tensor

HERE = Path(__file__).resolve().parent
CODE = ("modeling_tiny_reader.py", "ctc_decoder.py", "text_lines.py")
TOWER_SIZE, PATCH_SIZE = 224, 28  # the reader lays the text out again at this size
READER = {"x_heights": [10.5, 12.0], "min_confidence": 0.68}


def vision_config(vision: dict[str, Tensor]) -> dict[str, Any]:
    """The tower's part of `config.json`, its sizes read off its weights."""
    layers = {int(key.split("layers.")[1].split(".")[0]) for key in vision if ".layers." in key}
    fc1 = next(value for key, value in vision.items() if key.endswith("layers.0.mlp.fc1.weight"))
    return {
        "model_type": "siglip_vision_model",
        "hidden_size": fc1.shape[1],
        "intermediate_size": fc1.shape[0],
        "num_hidden_layers": max(layers) + 1,
        "num_attention_heads": fc1.shape[1] // 64,
        "image_size": TOWER_SIZE,
        "patch_size": PATCH_SIZE,
        "vision_use_head": False,
    }


def llava_config(gguf: GGUFFile, vision: dict[str, Tensor], tokenizer_bytes: int) -> dict[str, Any]:
    """`config.json`.  Weights are 16-bit on disk; `dtype` makes the default load float32."""
    name = "modeling_tiny_reader.TinyReaderForConditionalGeneration"
    return {
        "architectures": ["TinyReaderForConditionalGeneration"],
        "model_type": "llava",
        "dtype": "float32",
        "auto_map": {"AutoModelForImageTextToText": name},
        "reader": READER | {"tokenizer_bytes": tokenizer_bytes},
        "text_config": text_config(gguf),
        "vision_config": vision_config(vision),
        "image_token_index": IMAGE_TOKEN_ID,
        "image_seq_length": SLOTS,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "tie_word_embeddings": True,
    }


def write_model(gguf_path: Path, weights: Path, out: Path) -> None:
    """Write every file of the model into the folder `out`."""
    gguf = GGUFFile(gguf_path)
    processor(gguf).save_pretrained(out)
    tokenizer_json = bytearray((out / "tokenizer.json").read_bytes())
    vision = load_file(weights / "vision.safetensors")
    text = with_lora(language_model(gguf), weights)
    state = {f"model.language_model.{name}": value for name, value in text.items()}
    state |= {f"model.{name}": value for name, value in vision.items()}
    state = {name: value.to(torch.float16).contiguous() for name, value in state.items()}
    kept = torch.frombuffer(tokenizer_json, dtype=torch.uint8)
    state["model.multi_modal_projector.tokenizer_json"] = kept
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    config = llava_config(gguf, vision, len(tokenizer_json))
    (out / "config.json").write_text(json.dumps(config, indent=1))
    generation = {"eos_token_id": 2, "pad_token_id": 2, "do_sample": False}
    (out / "generation_config.json").write_text(json.dumps(generation))
    for name in CODE:
        shutil.copyfile(HERE / name, out / name)
    for path in out.iterdir():
        path.chmod(0o644)
