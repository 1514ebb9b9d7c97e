"""The slow reference: the model and the formulas, without the guard's hooks or detector.

Its inputs come from `plain`; the guard is only asked which layers the decoder has.
"""

from __future__ import annotations

import copy
import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from guardrail.conformance.outcomes import DoesNotApplyError, WrongResultError, first_line
from guardrail.conformance.trace import hidden_of, traced
from guardrail.model.decoder import decoder_layers, self_attention_layers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor
    from transformers import PreTrainedModel

    from guardrail.artefact import Artefact
    from guardrail.artefact.header import Steering

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


def layers_of(model: PreTrainedModel, outputs: int) -> tuple[int, ...]:
    """Which layers `outputs` layer outputs belong to: all of them, or those of self-attention."""
    count, always = len(decoder_layers(model)), self_attention_layers(model)
    if outputs not in (count, len(always)):
        raise WrongResultError(f"`hidden_states` lists {outputs} layers, {count} were found")
    return tuple(range(count)) if outputs == count else always


def score(artefact: Artefact, states: Tensor, kind: str) -> float:
    """Mean over the readout layers of (<h, w> - offset - zero) / gap, in float64."""
    tensors, total = artefact.tensors, 0.0
    layers = artefact.header.readout.layers
    for number, layer in enumerate(layers):
        read = float(states[layer] @ tensors["readout_weight"][number].double())
        if kind != "text":
            read -= float(tensors[f"readout_offset_{kind}"][number])
        read -= float(tensors["readout_zero"][number])
        total += read / float(tensors["readout_gap"][number])
    return total / len(layers)


def edit(artefact: Artefact, states: Tensor, value: float, gate: float, kind: str) -> Tensor:
    """What steering should add for a score of `value`: (d_model,) float64."""
    steering = _steering(artefact)
    wanted = min(max(steering.gain * (value - gate), 0.0), steering.a_max)
    move = min(wanted, max(steering.region_max - place(artefact, states, kind), 0.0))
    direction = artefact.tensors["direction"][steering.layer].double()
    return move * text_gap(artefact) * direction


def place(artefact: Artefact, states: Tensor, kind: str) -> float:
    """Where a request lies at the steering layer: 0 at safe texts, 1 at unsafe ones."""
    tensors, layer = artefact.tensors, _steering(artefact).layer
    direction = tensors["direction"][layer].double()
    here = float(states[layer] @ direction) - float(tensors["mu_safe"][layer].double() @ direction)
    if kind != "text":
        here -= float(tensors[f"steer_offset_{kind}"])
    return here / text_gap(artefact)


def text_gap(artefact: Artefact) -> float:
    """The length between the two means of texts at the steering layer."""
    tensors, layer = artefact.tensors, _steering(artefact).layer
    return float((tensors["mu_unsafe"][layer].double() - tensors["mu_safe"][layer].double()).norm())


def _steering(artefact: Artefact) -> Steering:
    if artefact.header.steering is None:
        raise ValueError("this artefact does not steer")
    return artefact.header.steering


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


def generate_if_possible(
    model: PreTrainedModel, inputs: Mapping[str, Any], tokens: int, **config: Any
) -> list[list[int]]:
    """`generate` in a way that not every model has: where plain transformers fails, so be it."""
    try:
        return generate(model, inputs, tokens, **config)
    except Exception as error:  # a border: any failure of the unguarded model means the same
        raise DoesNotApplyError(
            f"without a guard, plain transformers fails here as well ({first_line(error)})"
        ) from error


@contextmanager
def adding(layer: Any, rows: Tensor, first: int, last: int) -> Iterator[list[int]]:
    """Add `rows` (rows, d_model) behind a layer at positions first..last of cacheless passes.

    Yields the lengths of the passes. A pass with more rows than `rows` has that many beams of each.
    """
    lengths: list[int] = []

    def hook(_module: Any, _args: Any, output: Any) -> Any:
        hidden = hidden_of(output).clone()
        lengths.append(hidden.shape[1])
        vectors = rows.repeat_interleave(hidden.shape[0] // len(rows), dim=0)
        end = min(last + 1, hidden.shape[1])
        moved = hidden[:, first:end].double() + vectors[:, None].to(hidden.device)
        hidden[:, first:end] = moved.to(hidden.dtype)
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handle = layer.register_forward_hook(hook)
    try:
        yield lengths
    finally:
        handle.remove()


def steered_logits(
    model: PreTrainedModel, inputs: Mapping[str, Any], layer: int, rows: Tensor
) -> Tensor:
    """The head's last-position output in a prefill with `rows` added there.

    By `generate`, which counts the positions of padded rows as an answer does: a forward pass alone
    may count the padding, and models with learned positions do not overlook that.

    Raises:
        DoesNotApplyError: the model names no head.
    """
    last = inputs["input_ids"].shape[1] - 1
    with adding(decoder_layers(model)[layer], rows, last, last), traced(model) as trace:
        generate(model, _at_every_position(model, inputs), 1)
    if not trace.logits:
        raise DoesNotApplyError("the model names no head whose logits could be compared")
    return trace.logits[-1]


def steered_tokens(
    model: PreTrainedModel,
    inputs: Mapping[str, Any],
    layer: int,
    rows: Tensor,
    tokens: int,
    *,
    steer_tokens: int = 0,
    **config: Any,
) -> list[list[int]] | None:
    """Greedy tokens without a cache, edited at the last prompt position in every pass.

    None where the model cannot go without its cache, so that there is nothing to compare with.
    """
    last = inputs["input_ids"].shape[1] - 1
    stack = decoder_layers(model)
    with adding(stack[layer], rows, last, last + steer_tokens) as lengths:
        try:
            every = _at_every_position(model, inputs)
            answers = generate(model, every, tokens, use_cache=False, **config)
        except Exception:  # a border: the reference is at the end of its wits, not the guard
            return None
    grown = list(range(last + 1, last + 1 + len(lengths)))
    return answers if lengths == grown else None


def _at_every_position(model: PreTrainedModel, inputs: Mapping[str, Any]) -> Mapping[str, Any]:
    """`inputs` with which every layer runs at every position.

    Some models run their last layers on the positions alone whose logits are wanted; 0 means all.
    """
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    return {**inputs, "logits_to_keep": 0} if keeps else inputs


def _ended(row: list[int], model: PreTrainedModel) -> list[int]:
    """The tokens up to and with the first end token."""
    ends = model.generation_config.eos_token_id
    ids = set(ends if isinstance(ends, list | tuple) else [ends])
    for number, token in enumerate(row):
        if token in ids:
            return row[: number + 1]
    return row
