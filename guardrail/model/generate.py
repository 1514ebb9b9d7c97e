"""The only forward passes: answers, verdicts alone, residuals and next-token logits."""

from __future__ import annotations

import threading
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel, StoppingCriteriaList

from guardrail.errors import UnsupportedModelError
from guardrail.model.calls import PrefillDoneError, PromptCall, Ruling
from guardrail.model.criteria import Row, RowControl, RowOutcome, RowsCriterion
from guardrail.model.decoder import decoder_layers
from guardrail.model.hooks import PromptHooks, check_layers, prompt_hooks
from guardrail.model.inputs import Encoded, on_device
from guardrail.model.settings import Settings, generation_config

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from guardrail.model.detectors import AnyDetector
    from guardrail.model.load import LoadedModel
    from guardrail.policy import Policy

_DRAWING = threading.Lock()
_ONE_TOKEN = Settings(max_new_tokens=1, do_sample=False)


def generate_rows(
    loaded: LoadedModel,
    encoded: Encoded,
    detector: AnyDetector | None,
    settings: Settings,
    rows: Sequence[RowControl] = (),
    *,
    policy: Policy | None = None,
    hooks: PromptHooks | None = None,
) -> list[RowOutcome]:
    """Answer a batch in one `generate` call, judged inside its own prefill.

    Without a detector this is plain generation. Without a policy the detector's edits are applied
    and nothing is stopped. `hooks` registered earlier on the detector's layers are used if given.
    """
    eos = _eos(loaded.model)
    controls = rows or [RowControl() for _ in encoded.kinds]
    growing = [
        Row(control, eos=eos, max_tokens=settings.max_new_tokens, prompt_tokens=length)
        for control, length in zip(controls, encoded.lengths, strict=True)
    ]
    call = None if detector is None else _call(loaded, encoded, detector, policy)
    criterion = RowsCriterion(growing, call, beams=settings.num_beams > 1)
    with _active(loaded.model, call, hooks), _seeded(loaded.model, settings):
        try:
            sequences: Tensor | None = _run(loaded, encoded, settings, criterion)
        except PrefillDoneError:  # every row is stopped; nobody needs the later layers
            sequences = None
            criterion.rule()
    if settings.num_beams > 1 and sequences is not None:
        for row, ids in zip(growing, sequences[:, encoded.prompt_len :].tolist(), strict=True):
            _replay(row, ids)
    return [row.end("length") for row in growing]


def check_rows(
    loaded: LoadedModel,
    encoded: Encoded,
    detector: AnyDetector,
    *,
    policy: Policy | None = None,
    hooks: PromptHooks | None = None,
) -> list[Ruling]:
    """Judge a batch without answering: the pass ends after the deepest readout layer.

    Rows to be steered are followed to the steering layer, to see whether an edit can reach them.
    """
    call = _call(loaded, encoded, detector, policy, leave_after_readout=True)
    with _active(loaded.model, call, hooks):
        run_until_read(loaded, encoded)
    call.settle()
    return [call.ruling(number) for number in range(len(encoded.kinds))]


def last_residuals(
    loaded: LoadedModel, encoded: Encoded, layers: Sequence[int] | None = None
) -> Tensor:
    """Residuals at the last prompt position: (rows, k, d_model), float32 on the CPU.

    `layers` ascend; None reads all of them.
    """
    chosen = tuple(range(len(decoder_layers(loaded.model)))) if layers is None else tuple(layers)
    call = PromptCall(
        prompt_len=encoded.prompt_len,
        kinds=encoded.kinds,
        layers=chosen,
        leave_after_readout=True,
    )
    with prompt_hooks(loaded.model, chosen) as hooks, hooks.active(call):
        run_until_read(loaded, encoded)
    return call.recorded()


def next_token_logits(
    loaded: LoadedModel, encoded: Encoded, detector: AnyDetector | None = None
) -> Tensor:
    """Logits of the first token of the answer: (rows, vocab), float32 on the CPU.

    A detector's edits are applied, whatever it would flag.
    """
    call = None if detector is None else _call(loaded, encoded, detector, None)
    with _active(loaded.model, call, None):
        output: Any = _generate(
            loaded, encoded, _ONE_TOKEN, return_dict_in_generate=True, output_logits=True
        )
    if call is not None:
        call.require_decision()
    logits: Tensor = output.logits[0]
    return logits.float().cpu()


def _call(
    loaded: LoadedModel,
    encoded: Encoded,
    detector: AnyDetector,
    policy: Policy | None,
    *,
    leave_after_readout: bool = False,
) -> PromptCall:
    check_layers(detector, loaded.model)
    return PromptCall(
        prompt_len=encoded.prompt_len,
        kinds=encoded.kinds,
        layers=detector.layers,
        detector=detector,
        policy=policy,
        leave_after_readout=leave_after_readout,
    )


@contextmanager
def _active(
    model: PreTrainedModel, call: PromptCall | None, hooks: PromptHooks | None
) -> Iterator[None]:
    """Run the block for `call`, through hooks already there or through temporary ones."""
    if call is None or call.detector is None:
        yield
    elif hooks is not None:
        with hooks.active(call):
            yield
    else:
        layers = check_layers(call.detector, model)
        with prompt_hooks(model, layers) as temporary, temporary.active(call):
            yield


def _run(
    loaded: LoadedModel, encoded: Encoded, settings: Settings, criterion: RowsCriterion
) -> Tensor:
    sequences: Tensor = _generate(
        loaded, encoded, settings, stopping_criteria=StoppingCriteriaList([criterion])
    )
    return sequences


def run_until_read(loaded: LoadedModel, encoded: Encoded) -> None:
    """A prefill that the call leaves by itself once it has read what it came for."""
    try:
        _generate(loaded, encoded, _ONE_TOKEN, use_cache=False)
    except PrefillDoneError:
        return


def _generate(loaded: LoadedModel, encoded: Encoded, settings: Settings, **options: Any) -> Any:
    model: Any = loaded.model
    if type(model).generate is not GenerationMixin.generate:
        raise UnsupportedModelError(
            f"{type(model).__name__} brings its own generate(); a guard cannot vouch for it"
        )
    config: Any = generation_config(model, settings)
    criteria = options.pop("stopping_criteria", None)
    # Decoding steps may be edited too, and a compiled step runs no hook.
    config.update(disable_compile=True, **options)
    inputs = on_device(encoded, loaded.device, model.dtype)
    return model.generate(**inputs, generation_config=config, stopping_criteria=criteria)


@contextmanager
def _seeded(model: PreTrainedModel, settings: Settings) -> Iterator[None]:
    """Sample as after `torch.manual_seed(seed)`, and leave the generators as they were.

    All models of a process draw from the same generators, so sampled answers are made one after
    another. What remains: code outside the guards that draws meanwhile, and a callback of a sampled
    request must not wait for a sampled answer of another model.
    """
    with _DRAWING if settings.seed is not None or settings.samples(model) else nullcontext():
        if settings.seed is None:
            yield
            return
        with _from_seed(model, settings.seed):
            yield


@contextmanager
def _from_seed(model: PreTrainedModel, seed: int) -> Iterator[None]:
    kind = model.device.type
    module: Any = getattr(torch, kind, None)
    devices = list(range(module.device_count())) if kind != "cpu" and module is not None else []
    with torch.random.fork_rng(devices, device_type="cuda" if kind == "cpu" else kind):
        torch.manual_seed(seed)
        yield


def _eos(model: PreTrainedModel) -> frozenset[int]:
    ids = model.generation_config.eos_token_id
    if ids is None:
        return frozenset()
    return frozenset(ids if isinstance(ids, list | tuple) else [ids])


def _replay(row: Row, ids: Sequence[int]) -> None:
    """The best beam's tokens; a beam shorter than the longest is filled up with -1 or eos."""
    for token in ids:
        if token < 0 or row.outcome is not None:
            return
        row.take(token)
