"""The files of the assembled model: weights, configuration, processor and code."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from backbone import language_model, text_config, with_lora
from gguf_reader import GGUFFile
from networks import Network, efficientnet_lite, from_onnx
from processing import AFTER, BEFORE, IMAGE_SIZE, IMAGE_TOKEN_ID, SLOTS, processor
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor
from torchvision.models import EfficientNet_B0_Weights

HERE = Path(__file__).resolve().parent
CODE = ("modeling_tiny_vlm.py", "text_reader.py", "step_network.py")
EYE_SIZE = 260  # pixels on each side of what EfficientNet-Lite2 sees
MODEL = "TinyVLMForConditionalGeneration"
TOWER, PROJECTOR = "model.vision_tower", "model.multi_modal_projector"


@dataclass(frozen=True)
class Sources:
    """Where the weights of others are, and the licences that came with them."""

    gguf: Path
    detector: Path
    recogniser: Path
    eye: Path
    licences: dict[str, str]


def class_names() -> list[str]:
    """ImageNet's 1000 classes, in the order that classifiers use."""
    return [name.lower() for name in EfficientNet_B0_Weights.IMAGENET1K_V1.meta["categories"]]


def class_embeddings(embeddings: Tensor, tokenizer: Tokenizer) -> Tensor:
    """The mean embedding of each class name's tokens, (vocabulary, d) -> (1000, d)."""
    ids = [tokenizer.encode(f" {name}", add_special_tokens=False).ids for name in class_names()]
    return torch.stack([embeddings[row].mean(0) for row in ids])


def network_config(network: Network) -> dict[str, Any]:
    """What `StepNetwork` is made of."""
    return {"steps": network.steps, "tensors": network.parts()}


def config_json(gguf: GGUFFile, eye: dict[str, Any], words: dict[str, Any]) -> dict[str, Any]:
    """`config.json`.  Weights are 16-bit on disk; `dtype` makes the default load float32."""
    return {
        "architectures": [MODEL],
        "model_type": "llava",
        "dtype": "float32",
        "auto_map": {"AutoModelForImageTextToText": f"modeling_tiny_vlm.{MODEL}"},
        "eye": eye,
        "words": words,
        "text_config": text_config(gguf),
        # The eye is no tower that has a configuration of its own; only the size is true of it.
        "vision_config": {"model_type": "siglip_vision_model", "image_size": IMAGE_SIZE},
        "image_token_index": IMAGE_TOKEN_ID,
        "image_seq_length": SLOTS,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "tie_word_embeddings": True,
    }


def write_model(sources: Sources, adapter: Path, out: Path) -> None:
    """Write every file of the model into the folder `out`."""
    gguf = GGUFFile(sources.gguf)
    processor(gguf).save_pretrained(out)
    kept = (out / "tokenizer.json").read_bytes()
    tokenizer = Tokenizer.from_str(kept.decode())
    text = with_lora(language_model(gguf), adapter)
    embeddings = text["embed_tokens.weight"]
    before, after = (
        torch.tensor(tokenizer.encode(words, add_special_tokens=False).ids, dtype=torch.long)
        for words in (BEFORE, AFTER)
    )
    seen = torch.load(sources.eye, weights_only=True)
    features = efficientnet_lite(seen, EYE_SIZE)
    detector, recogniser = from_onnx(sources.detector), from_onnx(sources.recogniser)
    state = {f"model.language_model.{name}": value for name, value in text.items()}
    state |= _under(f"{TOWER}.features", features.tensors)
    state[f"{TOWER}.classifier.weight"] = seen["_fc.weight"]
    state[f"{TOWER}.classifier.bias"] = seen["_fc.bias"]
    state |= _under(f"{PROJECTOR}.reader.detector", detector.tensors)
    state |= _under(f"{PROJECTOR}.reader.recogniser", recogniser.tensors)
    state[f"{PROJECTOR}.class_embeddings"] = class_embeddings(embeddings, tokenizer)
    state[f"{PROJECTOR}.length"] = embeddings[: gguf_vocabulary(gguf)].norm(dim=-1).median()
    state = {name: _stored(value) for name, value in state.items()}
    state[f"{PROJECTOR}.before"], state[f"{PROJECTOR}.after"] = before, after
    state[f"{PROJECTOR}.tokenizer_json"] = torch.frombuffer(bytearray(kept), dtype=torch.uint8)
    save_file(state, out / "model.safetensors", metadata={"format": "pt"})
    classes, width = seen["_fc.weight"].shape
    config = config_json(
        gguf,
        eye={
            "size": EYE_SIZE,
            "features": network_config(features),
            "classifier": [width, classes],
        },
        words={
            "classes": classes,
            "before": len(before),
            "after": len(after),
            "tokenizer_bytes": len(kept),
            "reader": {
                "detector": network_config(detector),
                "recogniser": network_config(recogniser),
                "characters": recogniser.characters,
            },
        },
    )
    (out / "config.json").write_text(json.dumps(config))
    generation = {"eos_token_id": 2, "pad_token_id": 2, "do_sample": False}
    (out / "generation_config.json").write_text(json.dumps(generation))
    for name in CODE:
        shutil.copyfile(HERE / name, out / name)
    shutil.copyfile(HERE / "MODEL_CARD.md", out / "README.md")
    shutil.copyfile(HERE.parents[1] / "LICENSE", out / "LICENSE")  # Apache-2.0, as all parts are
    for package, text in sources.licences.items():
        (out / f"LICENSE.{package}").write_text(text, "utf-8")
    for path in out.iterdir():
        path.chmod(0o644)


def gguf_vocabulary(gguf: GGUFFile) -> int:
    """How many tokens the language model itself has."""
    return len(gguf.fields["tokenizer.ggml.tokens"])


def _under(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": value for name, value in tensors.items()}


def _stored(value: Tensor) -> Tensor:
    return (value.to(torch.float16) if value.is_floating_point() else value).contiguous()
