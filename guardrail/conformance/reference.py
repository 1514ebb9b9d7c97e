"""The slow reference: transformers by itself and the formulas, without the guard's code.

The guard is only asked where the decoder and its layers are.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers import PreTrainedTokenizerBase

from guardrail.model.decoder import decoder_layers, decoder_module, self_attention_layers
from guardrail.types import ImagePart, TextPart, VideoPart

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from torch import Tensor
    from transformers import PreTrainedModel

    from guardrail.artefact import Artefact
    from guardrail.model.load import LoadedModel
    from guardrail.types import Clip, Request

_GREEDY: dict[str, Any] = {
    "do_sample": False,
    "num_beams": 1,
    "num_return_sequences": 1,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 50,
    "return_dict_in_generate": False,
    "output_scores": False,
    "output_logits": False,
    "output_hidden_states": False,
    "output_attentions": False,
    "disable_compile": True,
}


class WrongResultError(Exception):
    """The guard did something else than the slow reference; never reaches a caller."""


class DoesNotApplyError(Exception):
    """The model itself lacks what is checked, as it was seen to; never reaches a caller."""


def expect(holds: bool, otherwise: str) -> None:
    """Go on, or end the check as failed with what was seen."""
    if not holds:
        raise WrongResultError(otherwise)


def plain_inputs(loaded: LoadedModel, *requests: Request) -> dict[str, Any]:
    """Inputs as a user of transformers makes them: of a request, or of a batch padded on the left.

    They are on the model's device, floating ones in its dtype.
    """
    processor: Any = loaded.processor
    texts_only = isinstance(processor, PreTrainedTokenizerBase)
    chats = [[_turn(message, texts_only) for message in r.messages] for r in requests]
    clips = [video.clip for r in requests for video in r.videos if isinstance(video, VideoPart)]
    options: dict[str, Any] = {}
    if len(requests) > 1 and texts_only:
        options = {"padding": True, "tokenizer_kwargs": {"padding_side": "left"}}
    elif len(requests) > 1:
        options = {"processor_kwargs": {"padding": True, "padding_side": "left"}}
    if clips:
        options.setdefault("processor_kwargs", {}).update(
            do_sample_frames=False, video_metadata=[_metadata(clip) for clip in clips]
        )
        # SmolVLM's class would put another template in place of the one that was loaded
        options["chat_template"] = processor.chat_template
    batch = processor.apply_chat_template(
        chats,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        **options,
    )
    return {name: placed(loaded, value) for name, value in batch.items()}


def placed(loaded: LoadedModel, value: Any) -> Any:
    """A tensor, or several of them in a list, where the model wants them."""
    if isinstance(value, torch.Tensor):
        return value.to(loaded.device, loaded.dtype if value.is_floating_point() else None)
    if isinstance(value, list | tuple):
        return type(value)(placed(loaded, one) for one in value)
    return value


def _turn(message: Any, texts_only: bool) -> dict[str, Any]:
    content: Any = [_part(part) for part in message.parts]
    if texts_only:
        content = "\n".join(part["text"] for part in content)
    return {"role": message.role, "content": content}


def _part(part: object) -> dict[str, Any]:
    match part:
        case TextPart(text=text):
            return {"type": "text", "text": text}
        case ImagePart(image=image):
            return {"type": "image", "image": image}
        case VideoPart(clip=clip):
            return {"type": "video", "video": list(clip.frames)}
        case _:
            raise TypeError(f"the reference makes no input of a {type(part).__name__}")


def _metadata(clip: Clip) -> dict[str, Any]:
    """Of frames that are evenly spread over time, numbered one by one."""
    count = len(clip.frames)
    rate = 1 / (clip.times[1] - clip.times[0])
    return {"total_num_frames": count, "fps": rate, "frames_indices": list(range(count))}


@torch.no_grad()
def residuals(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Tensor:
    """`hidden_states` behind each layer but the last, last position: (L - 1, d_model) float64.

    Rows of layers that do not run for this request are 0: `hidden_states` leaves them out.
    """
    untyped: Any = model
    states = untyped(**inputs, output_hidden_states=True, use_cache=False).hidden_states
    count = len(decoder_layers(model))
    found = torch.zeros(count - 1, states[0].shape[-1], dtype=torch.float64)
    for layer, state in zip(layers_of(model, len(states) - 1), states[1:], strict=True):
        if layer < count - 1:
            found[layer] = state[0, -1].cpu().double()
    return found


@torch.no_grad()
def positions(model: PreTrainedModel, inputs: Mapping[str, Any], layers: Sequence[int]) -> Tensor:
    """What layers give at every position of one request: (positions, k, d_model) float64."""
    untyped: Any = model
    states = untyped(**inputs, output_hidden_states=True, use_cache=False).hidden_states
    of_layer = dict(zip(layers_of(model, len(states) - 1), states[1:], strict=True))
    return torch.stack([of_layer[layer][0].cpu().double() for layer in layers], dim=1)


def highest_window(artefact: Artefact, states: Tensor) -> float:
    """Of all windows over one message's positions, (positions, k, d_model), the highest score.

    Raises:
        ValueError: the artefact has none, or the message is shorter than the first of them.
    """
    if (how := artefact.header.windows) is None:
        raise ValueError("this artefact has no windows")
    query, value, bias = (
        artefact.tensors[f"window_{n}"].double() for n in ("query", "value", "bias")
    )
    found = []
    for end in range(how.first, len(states) + 1):
        some = states[max(end - how.width, 0) : end]
        attention = torch.einsum("nkd,khd->nkh", some, query).softmax(dim=0)
        said = (attention * torch.einsum("nkd,khd->nkh", some, value)).sum(dim=0)
        found.append(float((said.sum(dim=-1) + bias).mean()))
    return (max(found) - how.zero) / how.gap


def layers_of(model: PreTrainedModel, outputs: int) -> tuple[int, ...]:
    """Which layers `outputs` layer outputs belong to: all of them, or those of self-attention."""
    count, always = len(decoder_layers(model)), self_attention_layers(model)
    if outputs not in (count, len(always)):
        raise WrongResultError(f"`hidden_states` lists {outputs} layers, {count} were found")
    return tuple(range(count)) if outputs == count else always


def score(artefact: Artefact, states: Tensor, kind: str) -> float:
    """Mean over the readout layers of (<h, w> - zero) / gap, re-centred, in float64."""
    tensors, total = artefact.tensors, 0.0
    layers = artefact.header.readout.layers
    for number, layer in enumerate(layers):
        read = float(states[layer] @ tensors["readout_weight"][number].double())
        read -= float(tensors["readout_zero"][number])
        total += read / float(tensors["readout_gap"][number])
    value = total / len(layers)
    if kind == "text":
        return value
    line = artefact.header.recentring[kind].score
    return (value - line.intercept) / line.slope


def edit(artefact: Artefact, value: float, gate: float) -> Tensor:
    """What steering should add for a score of `value`: (d_model,) float64; no region ends it.

    Its length is counted in gaps between the two means of texts at the steering layer.
    """
    steering = artefact.header.steering
    if steering is None:
        raise ValueError("this artefact does not steer")
    tensors, layer = artefact.tensors, steering.layer
    gap = (tensors["mu_unsafe"][layer].double() - tensors["mu_safe"][layer].double()).norm()
    move = min(max(steering.gain * (value - gate), 0.0), steering.a_max)
    vector: Tensor = move * gap * tensors["direction"][layer].double()
    return vector


@torch.no_grad()
def generate(
    model: PreTrainedModel, inputs: Mapping[str, Any], tokens: int, **config: Any
) -> list[list[int]]:
    """Greedy new tokens of plain `generate`, each row up to and with its end token."""
    untyped: Any = model
    chosen: Any = copy.deepcopy(model.generation_config)
    chosen.update(**(_GREEDY | {"max_new_tokens": tokens} | config))
    start = inputs["input_ids"].shape[1]
    rows = untyped.generate(**inputs, generation_config=chosen)[:, start:].tolist()
    return [_ended(row, model) for row in rows]


def _ended(row: list[int], model: PreTrainedModel) -> list[int]:
    ends = model.generation_config.eos_token_id
    ids = set(ends if isinstance(ends, list | tuple) else [ends])
    end = next((place for place, token in enumerate(row) if token in ids), len(row))
    return row[: end + 1]


def steered_logits(
    model: PreTrainedModel, inputs: Mapping[str, Any], layer: int, rows: Tensor
) -> Tensor:
    """The head's last-position output in a prefill with `rows` (rows, d_model) added there.

    By `generate`, which counts the positions of padded rows as an answer does: a forward pass alone
    may count the padding, and models with learned positions do not overlook that.

    Raises:
        DoesNotApplyError: the model names no head.
    """

    def add(_module: Any, _args: Any, output: Any) -> Any:
        hidden = hidden_of(output).clone()
        hidden[:, -1] = (hidden[:, -1].double() + rows.to(hidden.device)).to(hidden.dtype)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = decoder_layers(model)[layer].register_forward_hook(add)
    try:
        with traced(model) as trace:
            generate(model, inputs, 1)
    finally:
        handle.remove()
    if not trace.logits:
        raise DoesNotApplyError("the model names no head whose logits could be compared")
    return trace.logits[-1]


@dataclass
class Trace:
    """Passes of the decoder, and the head's last positions in each: (rows, vocab)."""

    passes: int = 0
    logits: list[Tensor] = field(default_factory=list)


@contextmanager
def traced(model: PreTrainedModel) -> Iterator[Trace]:
    """Watch the decoder and the head within the block, by hooks that know nothing of a guard's."""
    trace = Trace()
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]

    def passed(*_: Any) -> None:
        trace.passes += 1

    def headed(_module: Any, _args: Any, output: Any) -> None:
        trace.logits.append(output[:, -1].detach().clone())

    with ExitStack() as hooks:
        hooks.callback(decoder_module(model).register_forward_pre_hook(passed).remove)
        if head is not None:
            hooks.callback(head.register_forward_hook(headed).remove)
        yield trace


def hidden_of(output: Any) -> Tensor:
    """The residual stream in a layer's output."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def first_line(error: BaseException) -> str:
    """An error in one line of at most 160 characters, for a table's footnote."""
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= 160 else text[:157] + "..."
