"""Slow references for ways of generating: without a cache, within a trust region, as configured."""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from guardrail.conformance import reference
from guardrail.conformance.reference import DoesNotApplyError, first_line, hidden_of
from guardrail.conformance.subject import TOKENS
from guardrail.model.decoder import decoder_layers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from torch import Tensor
    from transformers import PreTrainedModel

    from guardrail.artefact import Artefact
    from guardrail.conformance.subject import Subject


def generate_if_possible(
    model: PreTrainedModel, inputs: Mapping[str, Any], tokens: int, **config: Any
) -> list[list[int]]:
    """`generate` in a way that not every model has: where plain transformers fails, so be it."""
    try:
        return reference.generate(model, inputs, tokens, **config)
    except Exception as error:  # any failure of the unguarded model means the same
        raise DoesNotApplyError(
            f"without a guard, plain transformers fails here as well ({first_line(error)})"
        ) from error


def exact(subject: Subject) -> bool:
    """Whether the dtype is fine enough for equal tokens by different ways of computing."""
    return subject.model.dtype in (torch.float32, torch.float64)


def slow_tokens(
    subject: Subject, vectors: Tensor, *, steer_tokens: int = 0, **config: Any
) -> list[list[int]] | None:
    """Tokens of the texts, each moved by its vector, by cacheless generation.

    None where there is nothing to compare with: the model needs its cache, or its dtype lets two
    ways of computing a logit choose different tokens.
    """
    if not exact(subject):
        return None
    layer = subject.steer
    options: dict[str, Any] = {"steer_tokens": steer_tokens, **config}
    return steered_tokens(subject.model, subject.text_inputs, layer, vectors, TOKENS, **options)


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
    # some models run their last layers on the positions alone whose logits are wanted; 0 means all
    keeps = "logits_to_keep" in inspect.signature(model.forward).parameters
    every = {**inputs, "logits_to_keep": 0} if keeps else inputs
    stack = decoder_layers(model)
    with adding(stack[layer], rows, last, last + steer_tokens) as lengths:
        try:
            answers = reference.generate(model, every, tokens, use_cache=False, **config)
        except Exception:  # the reference is at the end of its wits, not the guard
            return None
    grown = list(range(last + 1, last + 1 + len(lengths)))
    return answers if lengths == grown else None


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


def place(artefact: Artefact, states: Tensor, kind: str) -> float:
    """Where a request lies at the steering layer: 0 at safe texts, 1 at unsafe ones."""
    tensors, layer = artefact.tensors, artefact.header.steering.layer
    direction = tensors["direction"][layer].double()
    here = float(states[layer] @ direction) - float(tensors["mu_safe"][layer].double() @ direction)
    if kind == "text":
        return here / _text_gap(artefact)
    line = artefact.header.recentring[kind].steering
    return (here / _text_gap(artefact) - line.intercept) / line.slope


def edit_to_the_border(artefact: Artefact, states: Tensor, kind: str) -> Tensor:
    """The edit that the trust region ends: (d_model,) float64."""
    steering = artefact.header.steering
    move = max(steering.region_max - place(artefact, states, kind), 0.0)
    if kind != "text":  # a step along the direction is a longer one once scores are re-centred
        move *= artefact.header.recentring[kind].steering.slope
    return move * _text_gap(artefact) * artefact.tensors["direction"][steering.layer].double()


def _text_gap(artefact: Artefact) -> float:
    """The length between the two means of texts at the steering layer."""
    tensors, layer = artefact.tensors, artefact.header.steering.layer
    return float((tensors["mu_unsafe"][layer].double() - tensors["mu_safe"][layer].double()).norm())


@contextmanager
def configured(subject: Subject, **changes: Any) -> Iterator[None]:
    """The model's own generation config with some settings changed, for the block."""
    config: Any = subject.model.generation_config
    before = {name: getattr(config, name, None) for name in changes}
    config.update(**changes)
    for name, value in changes.items():  # settings without a declared field are set as well
        setattr(config, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)
