"""Tiny vision-language models with real processors, for tests that need no download.

Weights are random, so answers are gibberish: these models show mechanics (positions, shapes,
batches, streams), never behaviour. The whole path is real, though: chat template, tokenizer, image
processor, placeholder expansion, vision tower, decoder, `generate`. What they say can be scripted.
"""

from __future__ import annotations

import functools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    LogitsProcessor,
    LogitsProcessorList,
)

from guardrail.artefact import Artefact
from guardrail.artefact.header import (
    Calibration,
    Header,
    LayerRow,
    Line,
    Readout,
    Recentring,
    Steering,
    Windows,
)
from guardrail.model.decoder import self_attention_layers
from guardrail.model.fingerprint import fingerprint
from guardrail.model.load import wrap_model
from guardrail.policy import Thresholds
from guardrail.testing.families import family
from guardrail.types import Modality

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from transformers import (
        PreTrainedModel,
        PreTrainedTokenizerBase,
        PreTrainedTokenizerFast,
        ProcessorMixin,
    )

    from guardrail.model.load import LoadedModel

_HEADS = 2
_kind = family  # parameters are named like it
_SWITCHES = ("gate", "lambda_", "layer_scale")
"""Vectors that scale a whole branch, and start at (or near) nought in untrained models."""


def tiny_processor(family: str = "llava") -> ProcessorMixin | PreTrainedTokenizerFast:
    """The processor of `tiny_model(family)` alone; a tokenizer for a text-only family."""
    processor: ProcessorMixin | PreTrainedTokenizerFast = _kind(family).build()[1]
    return processor


def tiny_model(
    family: str = "llava", *, seed: int = 0
) -> tuple[PreTrainedModel, ProcessorMixin | PreTrainedTokenizerFast]:
    """A random model of `family` (see `FAMILIES`) and the processor that feeds it.

    `family(name)` of `guardrail.testing` says whether it takes pictures, videos, and both together.
    Four decoder layers of width 32, float32, eval mode, on the CPU. The same family and seed give
    the same weights bit for bit, and the caller's random state is left alone. The end-of-turn
    token is never the likeliest, so greedy answers run to `max_new_tokens`.
    """
    kind = _kind(family)
    config, processor = kind.build()
    tokenizer: Any = getattr(processor, "tokenizer", processor)
    auto: Any = AutoModelForImageTextToText if kind.pictures else AutoModelForCausalLM
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model: Any = auto.from_config(config, dtype=torch.float32).eval()
    randomise(model, tokenizer.all_special_ids, seed)
    generation = model.generation_config
    generation.pad_token_id = tokenizer.pad_token_id
    generation.eos_token_id = tokenizer.eos_token_id
    generation.do_sample = False
    return model, processor


def randomise(model: PreTrainedModel, special_ids: list[int], seed: int) -> None:
    """Draw all matrices anew, wide enough that the last position depends on the whole prompt.

    The special tokens get the logit 0, which is never the largest of several hundred random ones.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.dim() >= 2:
            parameter.data.normal_(0.0, 0.25, generator=generator)
        elif any(switch in name for switch in _SWITCHES) and not name.endswith(".bias"):
            parameter.data.fill_(0.5)
        elif name.endswith(".A_log"):
            parameter.data.fill_(-4.0)  # a recurrent state that forgets slowly, not at once
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    head.weight.data[special_ids] = 0.0


def tiny_artefact(
    model: PreTrainedModel,
    processor: ProcessorMixin | PreTrainedTokenizerFast,
    *,
    seed: int = 0,
    steering: bool = True,
    tau_steer: float = 0.5,
    tau_flag: float = 1.0,
    video: bool = True,
    windows: bool = True,
) -> Artefact:
    """An artefact for `model` with random unit directions, for tests of plumbing.

    It reads layers 1 and 2 of four (the middle of deeper models) and steers at the second of them;
    layers that a prompt without a picture skips do not count.
    Its scores mean nothing, and at the default thresholds some families' harmless texts are flagged
    or steered. So choose `tau_steer` and `tau_flag` so that every request passes (both 9), is
    flagged (both -9), or is steered unless no edit can reach it (-9 and 9). Without `steering` it
    can only detect, without `video` it can score no video, without `windows` it reads the ends of
    turns alone.
    """
    loaded = wrap_model(model, processor)
    count, width = loaded.layer_count, loaded.d_model
    usable = self_attention_layers(model)
    middle = len(usable) // 2
    read = tuple(sorted({usable[max(middle - 1, 0)], usable[middle]}))
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    direction = draw(count, width)
    direction /= direction.norm(dim=1, keepdim=True)
    safe, rows = draw(count, width), list(read)
    tensors = {
        "direction": direction,
        "mu_safe": safe,
        "mu_unsafe": safe + 2 * direction,
        "readout_weight": direction[rows],
        "readout_zero": (safe[rows] * direction[rows]).sum(dim=1),
        "readout_gap": torch.full((len(rows),), 2.0),
    }
    if windows:
        tensors |= {
            "window_query": 0.1 * draw(len(rows), _HEADS, width),
            "window_value": 0.1 * draw(len(rows), _HEADS, width),
            "window_bias": torch.zeros(len(rows)),
        }
    header = _tiny_header(loaded, read, steering, tau_steer, tau_flag)
    kinds = ("image", "images", "video") if video else ("image", "images")
    lines = {kind: Line(intercept=float(0.1 * draw()), slope=0.8) for kind in kinds}
    rows_of = {k: Recentring.unmeasured(line, steering=steering) for k, line in lines.items()}
    read_too = Windows(layers=read, heads=_HEADS, width=8, first=2, zero=0.0, gap=2.0)
    updated = {"recentring": rows_of, "windows": read_too if windows else None}
    return Artefact(header.model_copy(update=updated), tensors)


def _tiny_header(
    loaded: LoadedModel, read: tuple[int, ...], steering: bool, tau_steer: float, tau_flag: float
) -> Header:
    """A header whose text calibration holds 199 evenly spread scores below the thresholds."""
    scores = tuple(tau_flag - 1 + i / 200 for i in range(199))
    calibration = Calibration(
        scores=scores,
        thresholds=Thresholds(steer=tau_steer, flag=tau_flag),
        source="made up for tests",
        n=len(scores),
    )
    return Header(
        fingerprint=fingerprint(loaded),
        readout=Readout(estimator="random", layers=read),
        steering=Steering(layer=read[-1], gain=1.0, a_max=2.0, region_max=3.0)
        if steering
        else None,
        layers=tuple(
            LayerRow(layer=i, usable=i in self_attention_layers(loaded.model))
            for i in range(loaded.layer_count)
        ),
        calibration={Modality.TEXT: calibration},
        warnings=("random directions: for tests only",),
    )


@contextmanager
def scripted(
    model: PreTrainedModel,
    processor: ProcessorMixin | PreTrainedTokenizerBase,
    script: Callable[[str], str],
) -> Iterator[None]:
    """Within this block `model` answers `script(prompt)`, then ends its turn.

    `prompt` is the rendered chat with its control tokens; a picture shows as its placeholder
    tokens. Prefill, hooks, cache and verdict are the model's own: only the likeliest token is
    replaced, so tool calls and agents can be tested without a model that has learned to call tools.
    """
    owner: Any = model
    outer = vars(owner).get("generate")  # of a script around this one
    # not the outer one itself: of two scripts the inner one speaks
    original = functools.partial(type(owner).generate, owner)

    def generate(*args: Any, **options: Any) -> Any:
        forced = _Forced(getattr(processor, "tokenizer", processor), script)
        after = options.pop("logits_processor", None) or ()  # a form holds for scripts, too
        return original(*args, logits_processor=LogitsProcessorList([forced, *after]), **options)

    owner.generate = generate
    try:
        yield
    finally:
        if outer is None:
            del owner.generate
        else:
            owner.generate = outer


class _Forced(LogitsProcessor):
    """Of one generation: every row's script, drawn up when its prompt is first seen."""

    def __init__(self, tokenizer: Any, script: Callable[[str], str]) -> None:
        self._tokenizer, self._script = tokenizer, script
        self._lines: list[list[int]] = []
        self._start = 0

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> Any:
        """Scores that leave one token per row: (rows, vocab)."""
        if not self._lines:
            self._start = input_ids.shape[1]
            self._lines = [self._line(row) for row in input_ids.tolist()]
        said = input_ids.shape[1] - self._start
        forced = torch.full_like(scores, -torch.inf)
        for row, line in enumerate(self._lines):
            token = line[said] if said < len(line) else self._tokenizer.eos_token_id
            forced[row, token] = 0.0
        return forced

    def _line(self, prompt: list[int]) -> list[int]:
        read = [token for token in prompt if token != self._tokenizer.pad_token_id]
        text = self._script(self._tokenizer.decode(read, skip_special_tokens=False))
        ids: list[int] = self._tokenizer.encode(text, add_special_tokens=False)
        return ids
