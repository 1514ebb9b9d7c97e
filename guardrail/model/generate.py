"""The only forward passes: answers, verdicts alone, residuals and next-token logits.

Every pass goes through transformers' own `generate`, with hooks that read and edit the prompt.
Generation calls its stopping criteria after each token and before anybody else sees it. So that is
where rows end (flags, cancelled callers, deadlines, stop strings, lengths), where tokens are handed
out, and no streamer is needed.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import (
    GenerationMixin,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from guardrail.errors import UnsupportedModelError
from guardrail.model.chunks import require_exact_chunks
from guardrail.model.decoder import decoder_layers, self_attention_layers
from guardrail.model.encode import Encoded, media_as_counted, on_device
from guardrail.model.hooks import PromptHooks, check_layers, prompt_hooks
from guardrail.model.prefill import PrefillDoneError, PromptCall
from guardrail.model.settings import Settings, ends, generation_config, seeded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from guardrail.model.load import LoadedModel
    from guardrail.model.prefill import AnyDetector, ReadingLike, Ruling, WatchLike
    from guardrail.policy import Policy

log = logging.getLogger("guardrail")

_ONE_TOKEN = Settings(max_new_tokens=1, do_sample=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowOutcome:
    """New tokens of one request. `finish`: stop | length | flag | cancelled | timeout."""

    token_ids: tuple[int, ...]
    finish: str
    ruling: Ruling | None
    prompt_tokens: int


@dataclass(slots=True, kw_only=True)
class RowControl:
    """How a caller follows and ends one row; the callbacks run on the model's thread.

    `on_ruling` comes before the first token, `on_token` says whether the answer is complete,
    `on_window` whether a score of its latest tokens ends it, before the next token comes, `on_end`
    comes once, as soon as the row has ended, while others may go on. `on_scores` is given what a
    token is chosen from, (vocab,), before temperature and its like, and gives it back or another;
    not with beams.
    """

    cancelled: threading.Event = field(default_factory=threading.Event)
    deadline: float | None = None  # time.monotonic()
    max_tokens: int | None = None
    on_ruling: Callable[[Ruling], None] | None = None
    on_token: Callable[[int], bool] | None = None
    on_window: Callable[[float], bool] | None = None
    on_scores: Callable[[Tensor], Tensor] | None = None
    on_end: Callable[[RowOutcome], None] | None = None


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
    watch: WatchLike | None = None,
) -> list[RowOutcome]:
    """Answer a batch in one `generate` call, judged inside its own prefill.

    Without a detector this is plain generation. Without a policy the detector's edits are applied
    and nothing is stopped. `hooks` registered earlier on the detector's layers are used if given.
    `floors` are scores that the rows have at least (see `Detector.decide`). `watch` reads what the
    model says, without beams, at layers on which there are `hooks`.
    """
    growing = _growing(loaded, encoded, settings, rows)
    guarded: AbstractContextManager[PromptCall | None] = nullcontext()
    if detector is not None:
        guarded = _guarded(loaded, encoded, detector, policy, floors, hooks, watch=watch)
    with guarded as call, seeded(loaded, settings):
        criterion = RowsCriterion(growing, call, beams=settings.num_beams > 1)
        try:
            criteria = StoppingCriteriaList([criterion])
            sequences = _generate(loaded, encoded, settings, call, criteria, _processors(growing))
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
    reading: ReadingLike | None = None,
) -> list[Ruling]:
    """Judge a batch without answering: the pass ends after the deepest readout layer.

    Rows to be steered are followed to the steering layer, to see whether an edit can reach them.
    `reading` is one of the detector's for this batch, for a caller who looks into it afterwards.
    """
    with _guarded(
        loaded, encoded, detector, policy, floors, hooks, reading, leave_after_readout=True
    ) as call:
        run_until_read(loaded, encoded)
    call.settle()
    return [call.ruling(number) for number in range(len(encoded.kinds))]


def last_residuals(
    loaded: LoadedModel,
    encoded: Encoded,
    layers: Sequence[int] | None = None,
    chunk: int | None = None,
    reading: ReadingLike | None = None,
) -> Tensor:
    """Residuals at the last prompt position: (rows, k, d_model), float32 on the CPU.

    `layers` ascend; None reads all of them. Cross-attention layers, which run for pictures only,
    are not read: their residuals are NaN. `chunk` is that of `run_until_read`; a `reading` sees the
    layers it asks for.
    """
    chosen = tuple(range(len(decoder_layers(loaded.model)))) if layers is None else tuple(layers)
    always = set(self_attention_layers(loaded.model))
    read = tuple(layer for layer in chosen if layer in always)
    call = PromptCall(
        prompt_len=encoded.prompt_len,
        kinds=encoded.kinds,
        layers=read,
        leave_after_readout=True,
        reading=reading,
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
    return begun_rows(loaded, encoded, detector, _ONE_TOKEN, floors)[1]


def begun_rows(
    loaded: LoadedModel,
    encoded: Encoded,
    detector: AnyDetector | None,
    settings: Settings,
    floors: Sequence[float] = (),
) -> tuple[list[RowOutcome], Tensor]:
    """Answers without beams, and the logits of their first token, as `next_token_logits`."""
    rows = _growing(loaded, encoded, settings)
    guarded: AbstractContextManager[PromptCall | None] = nullcontext()
    if detector is not None:
        guarded = _guarded(loaded, encoded, detector, None, floors)
    with guarded as call:
        output: Any = _generate(
            loaded, encoded, settings, call, return_dict_in_generate=True, output_logits=True
        )
    if call is not None:
        call.require_decision()
    for row, ids in zip(rows, output.sequences[:, encoded.prompt_len :].tolist(), strict=True):
        row.replay(ids)
    logits: Tensor = output.logits[0]
    return [row.end("length") for row in rows], logits.float().cpu()


@torch.no_grad()
def continued_logits(loaded: LoadedModel, encoded: Encoded, token_ids: Sequence[int]) -> Tensor:
    """Logits that foretell each token of an answer to one text prompt: (n, vocab) float32, CPU."""
    count = len(token_ids)
    inputs = {}
    for name, value in on_device(encoded, loaded.device, loaded.dtype).items():
        if isinstance(value, Tensor) and value.shape == (1, encoded.prompt_len):
            more = value.new_full((1, count), int(name == "attention_mask"))
            inputs[name] = torch.cat([value, more], dim=1)
    inputs["input_ids"][0, -count:] = torch.tensor(token_ids, device=loaded.device)
    model: Any = loaded.model
    logits: Tensor = model(**inputs, use_cache=False).logits
    return logits[0, -count - 1 : -1].float().cpu()


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


@contextmanager
def _guarded(
    loaded: LoadedModel,
    encoded: Encoded,
    detector: AnyDetector,
    policy: Policy | None,
    floors: Sequence[float],
    hooks: PromptHooks | None = None,
    reading: ReadingLike | None = None,
    *,
    watch: WatchLike | None = None,
    leave_after_readout: bool = False,
) -> Iterator[PromptCall]:
    """Within the block passes are judged, through hooks that their owner made or temporary ones."""
    call = PromptCall(
        prompt_len=encoded.prompt_len,
        kinds=encoded.kinds,
        layers=detector.layers,
        floors=tuple(floors),
        detector=detector,
        reading=reading or detector.reading(encoded.parts, encoded.prompt_len),
        policy=policy,
        watch=watch,
        leave_after_readout=leave_after_readout,
    )
    with ExitStack() as held:
        if hooks is None:
            layers = check_layers(detector, loaded.model)
            hooks = held.enter_context(prompt_hooks(loaded.model, layers))
        held.enter_context(hooks.active(call))
        yield call


def _generate(
    loaded: LoadedModel,
    encoded: Encoded,
    settings: Settings,
    call: PromptCall | None = None,
    criteria: StoppingCriteriaList | None = None,
    processors: LogitsProcessorList | None = None,
    *,
    proven: bool = False,
    **options: Any,
) -> Any:
    """What `generate` of transformers gives; its config's `options`, chunks only where `proven`."""
    model: Any = loaded.model
    # A repository's `custom_generate` is put on the model itself, as a `partial`.
    custom = isinstance(vars(model).get("generate"), partial)
    if custom or type(model).generate is not GenerationMixin.generate:
        raise UnsupportedModelError(
            f"{type(model).__name__} brings its own generate(); a guard cannot vouch for it"
        )
    config: Any = generation_config(model, settings)
    config.update(**options)
    chunk: int | None = config.prefill_chunk_size
    if chunk is not None and not proven:
        layers = self_attention_layers(model)
        require_exact_chunks(
            loaded, encoded, chunk, lambda size: last_residuals(loaded, encoded, layers, chunk=size)
        )
    # A compiled pass runs no hook: neither one to be edited nor a prompt (chunks are compiled).
    watched = call is not None and (call.may_edit_tokens or call.watch is not None)
    hooked = watched or (call is not None and chunk is not None)
    config.disable_compile = bool(config.disable_compile) or hooked
    inputs = on_device(encoded, loaded.device, loaded.dtype)
    with media_as_counted():
        return model.generate(
            **inputs,
            generation_config=config,
            stopping_criteria=criteria,
            logits_processor=processors,
        )


def _growing(
    loaded: LoadedModel, encoded: Encoded, settings: Settings, controls: Sequence[RowControl] = ()
) -> list[Row]:
    """A batch's rows before their first token."""
    eos, controls = (
        ends(loaded.model.generation_config),
        controls or [RowControl() for _ in encoded.kinds],
    )
    return [
        Row(control, eos=eos, max_tokens=settings.max_new_tokens, prompt_tokens=length)
        for control, length in zip(controls, encoded.lengths, strict=True)
    ]


class Row:
    """One request while its answer grows."""

    def __init__(
        self, control: RowControl, *, eos: frozenset[int], max_tokens: int, prompt_tokens: int
    ) -> None:
        self._control, self._eos, self._prompt_tokens = control, eos, prompt_tokens
        self._max_tokens = min(max_tokens, control.max_tokens or max_tokens)
        self._tokens: list[int] = []
        self._ruling: Ruling | None = None
        self.outcome: RowOutcome | None = None

    def rule(self, ruling: Ruling) -> None:
        """Tell the caller what was decided; a stopped row gets no token."""
        self._ruling = ruling
        if self._control.on_ruling is not None:
            self._control.on_ruling(ruling)
        if ruling.stops:
            self.end("flag")

    def hear(self, score: float) -> None:
        """A score of the row's latest tokens, which may end it."""
        if self.outcome is None and self._control.on_window is not None:
            if self._control.on_window(score):
                self.end("flag")

    def check_caller(self) -> None:
        """End the row when nobody waits for it any more."""
        deadline = self._control.deadline
        if self._control.cancelled.is_set():
            self.end("cancelled")
        elif deadline is not None and time.monotonic() >= deadline:
            self.end("timeout")

    @property
    def on_scores(self) -> Callable[[Tensor], Tensor] | None:
        """Who looks at the scores of its next token; nobody once it has ended."""
        return None if self.outcome is not None else self._control.on_scores

    def take(self, token: int) -> None:
        """One more token, unless the row has ended."""
        self.check_caller()
        if self.outcome is not None:
            return
        self._tokens.append(token)
        if token in self._eos or self._completes(token):
            self.end("stop")
        elif len(self._tokens) >= self._max_tokens:
            self.end("length")

    def replay(self, ids: Sequence[int]) -> None:
        """The best beam's tokens; one shorter than the longest is filled up with -1 or eos."""
        for token in ids:
            if token < 0 or self.outcome is not None:
                return
            self.take(token)

    def end(self, finish: str) -> RowOutcome:
        """Close the row; the first reason stands."""
        if self.outcome is None:
            self.outcome = RowOutcome(
                token_ids=tuple(self._tokens),
                finish=finish,
                ruling=self._ruling,
                prompt_tokens=self._prompt_tokens,
            )
            if self._control.on_end is not None:
                self._control.on_end(self.outcome)
        return self.outcome

    def _completes(self, token: int) -> bool:
        return self._control.on_token is not None and self._control.on_token(token)


def _processors(rows: Sequence[Row]) -> LogitsProcessorList | None:
    """Who looks at scores before a token is chosen, if anybody does."""
    if all(row.on_scores is None for row in rows):
        return None
    return LogitsProcessorList([RowsScores(rows)])


class RowsScores(LogitsProcessor):
    """Gives each row's scores to who looks at them; those of other rows stay as they are."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self._rows = rows

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Any:
        """Scores to choose the next token from: (rows, vocab)."""
        seen = scores.clone()
        for number, row in enumerate(self._rows):
            if row.on_scores is not None:
                seen[number] = row.on_scores(scores[number])
        return seen


class RowsCriterion(StoppingCriteria):
    """Ends rows; refuses to let a first token out before every row was judged."""

    def __init__(self, rows: Sequence[Row], call: PromptCall | None, *, beams: bool) -> None:
        self._rows, self._call, self._beams = rows, call, beams
        self._ruled = self._spoken = False

    def rule(self) -> None:
        """Hand out the rulings, once."""
        if self._call is None or self._ruled:
            return
        self._call.settle()
        self._ruled = True
        for number, row in enumerate(self._rows):
            row.rule(self._call.ruling(number))

    def hear(self) -> None:
        """Hand out what was read of the tokens so far; the newest one is not among them yet."""
        if self._call is None or self._call.watch is None:
            return
        spoken, self._spoken = self._spoken, True
        if not spoken:
            return
        try:
            scores = self._call.watch.scores()
        except Exception:  # the fail-mode border: the policy says what an outage means
            log.exception("the answers of %d rows could not be read", len(self._rows))
            scores = [math.nan] * len(self._rows)
        for row, score in zip(self._rows, scores or (), strict=bool(scores)):
            row.hear(score)

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """Which rows are done: (rows,) bool. A beam search asks for several per request."""
        self.rule()
        self.hear()
        if self._beams:
            for row in self._rows:
                row.check_caller()
        else:
            for row, token in zip(self._rows, input_ids[:, -1].tolist(), strict=True):
                row.take(token)
        done = torch.tensor([row.outcome is not None for row in self._rows])
        return done.to(input_ids.device).repeat_interleave(input_ids.shape[0] // len(done))
