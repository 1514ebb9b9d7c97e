"""The only forward passes: answers, verdicts alone, residuals and next-token logits."""

from __future__ import annotations

from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import GenerationMixin, PreTrainedModel, StoppingCriteriaList

from guardrail.errors import UnsupportedModelError
from guardrail.model.calls import PrefillDoneError, PromptCall
from guardrail.model.chunks import require_exact_chunks
from guardrail.model.criteria import Row, RowControl, RowOutcome, RowsCriterion
from guardrail.model.decoder import decoder_layers, self_attention_layers
from guardrail.model.hooks import PromptHooks, check_layers, prompt_hooks
from guardrail.model.inputs import Encoded, on_device
from guardrail.model.refusals import media_as_counted
from guardrail.model.seeding import seeded
from guardrail.model.settings import Settings, generation_config

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from guardrail.model.detectors import AnyDetector
    from guardrail.model.load import LoadedModel
    from guardrail.model.rulings import Ruling
    from guardrail.policy import Policy

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
    floors: Sequence[float] = (),
) -> list[RowOutcome]:
    """Answer a batch in one `generate` call, judged inside its own prefill.

    Without a detector this is plain generation. Without a policy the detector's edits are applied
    and nothing is stopped. `hooks` registered earlier on the detector's layers are used if given.
    `floors` are scores that the rows have at least (see `Detector.decide`).
    """
    eos = _eos(loaded.model)
    controls = rows or [RowControl() for _ in encoded.kinds]
    growing = [
        Row(control, eos=eos, max_tokens=settings.max_new_tokens, prompt_tokens=length)
        for control, length in zip(controls, encoded.lengths, strict=True)
    ]
    call = None if detector is None else _call(loaded, encoded, detector, policy, floors)
    criterion = RowsCriterion(growing, call, beams=settings.num_beams > 1)
    with _active(loaded.model, call, hooks), seeded(loaded, settings):
        try:
            sequences: Tensor | None = _run(loaded, encoded, settings, criterion, call)
        except PrefillDoneError:  # every row is stopped; nobody needs the later layers
            sequences = None
            criterion.rule()
    if settings.num_beams > 1 and sequences is not None:
        for row, ids in zip(growing, sequences[:, encoded.prompt_len :].tolist(), strict=True):
            row.replay(ids)
    return [row.end("length") for row in growing]


def check_rows(
    loaded: LoadedModel,
    encoded: Encoded,
    detector: AnyDetector,
    *,
    policy: Policy | None = None,
    hooks: PromptHooks | None = None,
    floors: Sequence[float] = (),
) -> list[Ruling]:
    """Judge a batch without answering: the pass ends after the deepest readout layer.

    Rows to be steered are followed to the steering layer, to see whether an edit can reach them.
    """
    call = _call(loaded, encoded, detector, policy, floors, leave_after_readout=True)
    with _active(loaded.model, call, hooks):
        run_until_read(loaded, encoded)
    call.settle()
    return [call.ruling(number) for number in range(len(encoded.kinds))]


def last_residuals(
    loaded: LoadedModel,
    encoded: Encoded,
    layers: Sequence[int] | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Residuals at the last prompt position: (rows, k, d_model), float32 on the CPU.

    `layers` ascend; None reads all of them. Cross-attention layers, which run for pictures only,
    are not read: their residuals are NaN. `chunk` is that of `run_until_read`.
    """
    chosen = tuple(range(len(decoder_layers(loaded.model)))) if layers is None else tuple(layers)
    always = set(self_attention_layers(loaded.model))
    read = tuple(layer for layer in chosen if layer in always)
    call = PromptCall(
        prompt_len=encoded.prompt_len,
        kinds=encoded.kinds,
        layers=read,
        leave_after_readout=True,
    )
    with prompt_hooks(loaded.model, read) as hooks, hooks.active(call):
        run_until_read(loaded, encoded, chunk=chunk)
    found = call.recorded()
    if read == chosen:
        return found
    every = found.new_full((len(found), len(chosen), found.shape[2]), torch.nan)
    every[:, [place for place, layer in enumerate(chosen) if layer in always]] = found
    return every


def next_token_logits(
    loaded: LoadedModel,
    encoded: Encoded,
    detector: AnyDetector | None = None,
    floors: Sequence[float] = (),
) -> Tensor:
    """Logits of the first token of the answer: (rows, vocab), float32 on the CPU.

    A detector's edits are applied, whatever it would flag; `floors` as in `generate_rows`.
    """
    call = None if detector is None else _call(loaded, encoded, detector, None, floors)
    with _active(loaded.model, call, None):
        output: Any = _generate(
            loaded, encoded, _ONE_TOKEN, call, return_dict_in_generate=True, output_logits=True
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
    floors: Sequence[float] = (),
    *,
    leave_after_readout: bool = False,
) -> PromptCall:
    check_layers(detector, loaded.model)
    return PromptCall(
        prompt_len=encoded.prompt_len,
        kinds=encoded.kinds,
        layers=detector.layers,
        floors=tuple(floors),
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
    loaded: LoadedModel,
    encoded: Encoded,
    settings: Settings,
    criterion: RowsCriterion,
    call: PromptCall | None,
) -> Tensor:
    sequences: Tensor = _generate(
        loaded,
        encoded,
        settings,
        call,
        stopping_criteria=StoppingCriteriaList([criterion]),
    )
    return sequences


def run_until_read(loaded: LoadedModel, encoded: Encoded, *, chunk: int | None = None) -> None:
    """A prefill that the call leaves by itself once it has read what it came for.

    The prompt is read as a whole, whatever the model's config says, or in chunks of that size.
    """
    if chunk is None and loaded.model.generation_config.prefill_chunk_size is not None:
        chunk = encoded.prompt_len  # None would mean: as the model's config says
    how: dict[str, Any] = {"use_cache": chunk is not None, "prefill_chunk_size": chunk}
    try:
        _generate(loaded, encoded, _ONE_TOKEN, proven=True, disable_compile=True, **how)
    except PrefillDoneError:
        return


def _generate(
    loaded: LoadedModel,
    encoded: Encoded,
    settings: Settings,
    call: PromptCall | None = None,
    *,
    proven: bool = False,
    **options: Any,
) -> Any:
    model: Any = loaded.model
    # A repository's `custom_generate` is put on the model itself, as a `partial`.
    custom = isinstance(vars(model).get("generate"), partial)
    if custom or type(model).generate is not GenerationMixin.generate:
        raise UnsupportedModelError(
            f"{type(model).__name__} brings its own generate(); a guard cannot vouch for it"
        )
    config: Any = generation_config(model, settings)
    criteria = options.pop("stopping_criteria", None)
    config.update(**options)
    chunk: int | None = config.prefill_chunk_size
    if chunk is not None and not proven:
        layers = self_attention_layers(model)
        require_exact_chunks(
            loaded, encoded, chunk, lambda size: last_residuals(loaded, encoded, layers, chunk=size)
        )
    # A compiled pass runs no hook: neither one to be edited nor a prompt (chunks are compiled).
    hooked = call is not None and (call.may_edit_tokens or chunk is not None)
    config.disable_compile = bool(config.disable_compile) or hooked
    inputs = on_device(encoded, loaded.device, loaded.dtype)
    with media_as_counted():
        return model.generate(**inputs, generation_config=config, stopping_criteria=criteria)


def _eos(model: PreTrainedModel) -> frozenset[int]:
    ids = model.generation_config.eos_token_id
    if ids is None:
        return frozenset()
    return frozenset(ids if isinstance(ids, list | tuple) else [ids])
