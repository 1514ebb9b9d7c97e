"""The language model of the tiny reader: a GGUF file's weights with a LoRA merged in."""

import json
from pathlib import Path
from typing import Any

import torch
from gguf_reader import GGUFFile
from safetensors.torch import load_file
from torch import Tensor

VOCAB_SIZE = 49160  # SmolLM2's vocabulary and the image token, padded to a multiple of 8
NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def text_config(gguf: GGUFFile) -> dict[str, Any]:
    """The language model's part of `config.json`."""
    fields = {key.removeprefix("llama."): value for key, value in gguf.fields.items()}
    theta = fields["rope.freq_base"]
    return {
        "model_type": "llama",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": fields["embedding_length"],
        "intermediate_size": fields["feed_forward_length"],
        "num_hidden_layers": fields["block_count"],
        "num_attention_heads": fields["attention.head_count"],
        "num_key_value_heads": fields["attention.head_count_kv"],
        "head_dim": fields["rope.dimension_count"],
        "max_position_embeddings": fields["context_length"],
        "rms_norm_eps": fields["attention.layer_norm_rms_epsilon"],
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta},
        "rope_theta": theta,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }


def language_model(gguf: GGUFFile) -> dict[str, Tensor]:
    """State dict with the parameter names of `LlamaModel`, float32."""
    heads = gguf.fields["llama.attention.head_count"]
    kv_heads = gguf.fields["llama.attention.head_count_kv"]
    embeddings = gguf.tensor("token_embd.weight")
    extra = embeddings.mean(0, keepdim=True).expand(VOCAB_SIZE - len(embeddings), -1)
    state = {
        "embed_tokens.weight": torch.cat([embeddings, extra]),
        "norm.weight": gguf.tensor("output_norm.weight"),
    }
    for layer in range(gguf.fields["llama.block_count"]):
        for source, target in NAMES.items():
            weight = gguf.tensor(f"blk.{layer}.{source}.weight")
            if source in ("attn_q", "attn_k"):
                weight = unpermuted(weight, heads if source == "attn_q" else kv_heads)
            state[f"layers.{layer}.{target}.weight"] = weight
    return state


def unpermuted(weight: Tensor, heads: int) -> Tensor:
    """The rows of q_proj or k_proj without llama.cpp's interleaving of the rotary halves."""
    rows, columns = weight.shape
    halves = weight.view(heads, rows // heads // 2, 2, columns)
    return halves.transpose(1, 2).reshape(rows, columns)


def with_lora(state: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The language model's weights plus the low-rank updates of the PEFT adapter in `folder`."""
    config = json.loads((folder / "adapter_config.json").read_text())
    loaded = load_file(folder / "lora.safetensors")
    adapter = {key: value.float() for key, value in loaded.items()}
    scale = config["lora_alpha"] / config["r"]
    merged = dict(state)
    for key in adapter:
        if key.endswith("lora_A.weight"):
            name = key.removeprefix("base_model.model.model.").replace(".lora_A.weight", ".weight")
            update = adapter[key.replace("lora_A", "lora_B")] @ adapter[key]
            merged[name] = state[name] + scale * update
    return merged
