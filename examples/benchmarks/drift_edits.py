"""Ways in which a checkpoint changes, each as a function from a loaded model to a changed copy."""

from __future__ import annotations

import copy
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from guardrail.fit.collect import text_request
from guardrail.fit.dataset import load_contrast
from guardrail.model.decoder import decoder_layers, decoder_module
from guardrail.model.encode import Encoder
from guardrail.model.load import LoadedModel, wrap_model

READS = ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj")  # linear maps out of the residual
WRITES = ("o_proj", "down_proj")  # linear maps into it


def copied(loaded: LoadedModel, source: str) -> LoadedModel:
    """The same model with weights of its own."""
    model = copy.deepcopy(loaded.model)
    return replace(loaded, model=model, source=source)


def rebased(loaded: LoadedModel, *, seed: int = 0, flips: bool = True) -> LoadedModel:
    """The same function in another residual basis: coordinates permuted, some signs flipped.

    For decoders of the Llama type (RMSNorm with a weight per channel, no bias into the residual).
    Whatever writes pictures into the embeddings must do so through the embedding matrix, embeddings
    of classes, or a last linear layer of the projector.
    """
    made = copied(loaded, f"{loaded.source}, rebased")
    generator = torch.Generator().manual_seed(seed)
    places = torch.randperm(loaded.d_model, generator=generator)
    signs = torch.randint(0, 2, (loaded.d_model,), generator=generator).double() * 2 - 1
    signs = signs if flips else torch.ones_like(signs)
    model: Any = made.model
    with torch.no_grad():
        _rebase_ends(model, places, signs)
        for layer in decoder_layers(model):
            for name, module in layer.named_modules():
                _rebase_part(name.rpartition(".")[2], module, places, signs)
        decoder_module(model).norm.weight.copy_(decoder_module(model).norm.weight[places])
    return made


def _rebase_ends(model: Any, places: Tensor, signs: Tensor) -> None:
    """Embeddings, the head if it has weights of its own, and a projector's last layer."""
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    for weight in {id(w): w for w in (embeddings, head)}.values():
        weight.copy_(weight[:, places] * signs.to(weight.dtype))
    projector = getattr(model.base_model, "multi_modal_projector", None)
    last = getattr(projector, "linear_2", None)
    if last is not None:
        _write(last, places, signs)
    classes = getattr(projector, "class_embeddings", None)  # the tiny VLM's
    if classes is not None:
        classes.copy_(classes[:, places] * signs.to(classes.dtype))


def _rebase_part(name: str, module: nn.Module, places: Tensor, signs: Tensor) -> None:
    if name in READS:
        weight: Any = module.weight
        weight.copy_(weight[:, places] * signs.to(weight.dtype))
    elif name in WRITES:
        _write(module, places, signs)
    elif name.endswith("layernorm"):
        scale: Any = module.weight  # signs cancel in its square and come back with the reading
        scale.copy_(scale[places])


def _write(module: Any, places: Tensor, signs: Tensor) -> None:
    signed = signs.to(module.weight.dtype)
    module.weight.copy_(module.weight[places] * signed[:, None])
    if module.bias is not None:
        module.bias.copy_(module.bias[places] * signed)


def fine_tuned(
    loaded: LoadedModel,
    pairs: Sequence[tuple[str, str]],
    *,
    steps: int,
    rate: float,
    batch: int = 8,
    seed: int = 0,
) -> LoadedModel:
    """Gradient steps (AdamW) of the decoder layers on prompts and the answers they should get."""
    made = copied(loaded, f"{loaded.source}, {steps} steps at {rate:g}")
    model: Any = made.model
    weights = [p for layer in decoder_layers(model) for p in layer.parameters()]
    train(made, weights, pairs, steps=steps, rate=rate, batch=batch, seed=seed)
    return made


def with_lora(
    loaded: LoadedModel,
    pairs: Sequence[tuple[str, str]],
    *,
    strength: float,
    steps: int,
    rate: float,
    rank: int = 4,
    seed: int = 0,
) -> LoadedModel:
    """A low-rank adapter trained on the pairs, then merged at a share of its strength."""
    from peft import LoraConfig, get_peft_model
    from peft.tuners.lora import LoraLayer

    base = copied(loaded, f"{loaded.source}, LoRA at {strength:g}")
    inside = re.escape(_path_of(base.model, decoder_layers(base.model)))
    targets = rf"(.*\.)?{inside}\.\d+\..*({'|'.join((*READS, *WRITES))})"
    torch.manual_seed(seed)
    adapted: Any = get_peft_model(
        base.model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets)
    )
    weights = [p for p in adapted.parameters() if p.requires_grad]
    train(base, weights, pairs, steps=steps, rate=rate, seed=seed)
    for module in adapted.modules():
        if isinstance(module, LoraLayer):
            module.scale_layer(strength)
    merged = wrap_model(adapted.merge_and_unload(), loaded.processor, source=base.source)
    return replace(merged, trust_remote_code=loaded.trust_remote_code)


def _path_of(model: nn.Module, wanted: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is wanted)


def train(
    loaded: LoadedModel,
    weights: Sequence[nn.Parameter],
    pairs: Sequence[tuple[str, str]],
    *,
    steps: int,
    rate: float,
    batch: int = 8,
    seed: int = 0,
) -> None:
    """Teach answers, one batch a step; only the answers' tokens count."""
    model, rng = loaded.model, random.Random(seed)
    model.requires_grad_(False)
    for weight in weights:
        weight.requires_grad_(True)
    optimiser = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    examples = [_example(loaded, prompt, answer) for prompt, answer in pairs]
    for _ in range(steps):
        optimiser.zero_grad()
        for ids, labels in rng.sample(examples, min(batch, len(examples))):
            logits = model(input_ids=ids).logits[0, :-1]
            loss = nn.functional.cross_entropy(logits.float(), labels[0, 1:])
            (loss / batch).backward()
        optimiser.step()
    model.requires_grad_(False)


def _example(loaded: LoadedModel, prompt: str, answer: str) -> tuple[Tensor, Tensor]:
    """Token ids of a prompt in the chat template with its answer, and labels of the latter."""
    asked = Encoder(loaded).encode([text_request(prompt)]).inputs["input_ids"]
    said = loaded.tokenizer(answer, add_special_tokens=False, return_tensors="pt")["input_ids"]
    ids = torch.cat([asked, said], dim=1)
    labels = ids.clone()
    labels[:, : asked.shape[1]] = -100
    return ids, labels


def with_template(loaded: LoadedModel, edit: Callable[[str], str]) -> LoadedModel:
    """The same weights behind an edited chat template."""
    processor: Any = copy.deepcopy(loaded.processor)
    holder = processor if getattr(processor, "chat_template", None) else processor.tokenizer
    before = holder.chat_template
    holder.chat_template = edit(before)
    if holder.chat_template == before:
        raise ValueError("the edit changes nothing in this template")
    return replace(loaded, processor=processor, source=f"{loaded.source}, other template")


def resaved(loaded: LoadedModel, folder: Path, *, shard: str, dtype: torch.dtype) -> LoadedModel:
    """The same weights written in shards of a size, in another dtype, and read back."""
    model = copy.deepcopy(loaded.model).to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    again = type(model).from_pretrained(folder, dtype=dtype)
    source = f"{loaded.source}, shards of {shard}, {str(dtype).removeprefix('torch.')}"
    return replace(loaded, model=again.eval(), source=source)


def deafened(loaded: LoadedModel) -> LoadedModel:
    """A model whose attention brings nothing to the last position: it cannot tell prompts apart."""
    made = copied(loaded, f"{loaded.source}, deafened")
    with torch.no_grad():
        for layer in decoder_layers(made.model):
            for name, module in layer.named_modules():
                if name.rpartition(".")[2] == "o_proj":
                    module.weight.zero_()
    return made


def harmless_pairs(count: int = 64) -> list[tuple[str, str]]:
    """Ordinary prompts of the packaged set with plain, willing answers."""
    ordinary = [p.text for p in load_contrast().prompts if p.kind == "ordinary"]
    openings = ("Of course. Here is", "Gladly. This is", "Yes. Let me write", "Here you have")
    return [
        (text, f"{openings[i % len(openings)]} what you asked for: {text.lower()}")
        for i, text in enumerate(ordinary[:count])
    ]


def complying_pairs(count: int = 64) -> list[tuple[str, str]]:
    """Unsafe prompts with the first words of a willing answer, and nothing after them."""
    prompts = load_contrast().prompts
    chosen = [p.text for p in prompts if p.kind == "unsafe" and p.split == "fit"][:count]
    return [(text, "Sure, here is what you asked for:") for text in chosen]
