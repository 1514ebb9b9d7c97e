"""How an answer is generated, and what of a model's own generation config is kept."""

from __future__ import annotations

import copy
import json
import os
import threading
from collections.abc import Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from transformers.generation.configuration_utils import GenerationMode

from guardrail.errors import UnsupportedModelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from transformers import GenerationConfig, PreTrainedModel

    from guardrail.model.load import LoadedModel

_MODES = {
    GenerationMode.GREEDY_SEARCH,
    GenerationMode.SAMPLE,
    GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
}
# What each of them asks for emits tokens that no step of the guard has seen.
_ASKS_FOR = {
    "prompt_lookup_num_tokens": "assisted decoding",
    "assistant_early_exit": "assisted decoding",
    "use_mtp": "assisted decoding",
    "dola_layers": "DoLa decoding",
    "penalty_alpha": "contrastive search",
    "constraints": "constrained beam search",
    "force_words_ids": "constrained beam search",
}
_ASK_AGAIN = (
    "a guard gives one answer to a request; for several, ask several times: "
    "guard.batch([messages] * 3, temperature=0.8)"
)
# Settings that end rows or feed the model behind the guard's back.
_REFUSED: dict[str, tuple[object, ...]] = {
    "stop_strings": (None,),
    "guidance_scale": (None, 1, 1.0),
    "token_healing": (None, False),
    "cache_implementation": (None, "dynamic", "static", "hybrid", "quantized", "offloaded"),
}
# Need not be equal in a greedy batch: where each row ends, how tokens would be drawn, which of them
# its form allows, and what is told of them.
_EACH_ROWS_OWN = (
    *("max_new_tokens", "stop", "temperature", "top_p", "top_k", "seed"),
    *("json_schema", "tool_choice", "logprobs"),
)
# What `tool_choice` says when it names no tool.
_UNFORCED = (None, "auto", "none")

LARGEST_SCHEMA = 65_536  # characters of JSON


class Settings(BaseModel):
    """One request's generation settings. None: as the model's generation config says.

    Temperature 0 is greedy search; another one, `top_p` or `top_k` asks for sampling, unless
    `do_sample` says otherwise. `seed` makes a sampled answer repeatable.

    `json_schema` is kept as JSON text. With it, or a call that is forced, no other token can be
    chosen than those with which an answer in that form goes on (see `guardrail.model.constrained`).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_new_tokens: int = Field(default=256, gt=0)
    do_sample: bool | None = None
    temperature: float | None = Field(default=None, ge=0)
    top_p: float | None = Field(default=None, gt=0, le=1)
    top_k: int | None = Field(default=None, ge=0)
    repetition_penalty: float | None = Field(default=None, gt=0)
    seed: int | None = None
    stop: tuple[str, ...] = ()
    num_beams: int = Field(default=1, gt=0)
    json_schema: str | None = None
    tool_choice: str | None = Field(default=None, min_length=1)
    logprobs: int | None = Field(default=None, ge=0, le=20, strict=True)
    num_return_sequences: int = 1  # to say why another number is none

    @field_validator("num_return_sequences")
    @classmethod
    def _one_answer(cls, count: int) -> int:
        if count != 1:
            raise ValueError(_ASK_AGAIN)
        return count

    @field_validator("json_schema", mode="before")
    @classmethod
    def _as_text(cls, schema: object) -> str | None:
        """A copy, so that nobody changes a schema under a request that waits."""
        if schema is None:
            return None
        if not isinstance(schema, Mapping):
            raise ValueError(
                f"a schema is a mapping, such as {{'type': 'object'}}, not {type(schema).__name__}"
            )
        text = json_text(schema)
        if len(text) > LARGEST_SCHEMA:
            raise ValueError(
                f"the schema takes {len(text)} characters of JSON; {LARGEST_SCHEMA} are allowed"
            )
        return text

    @model_validator(mode="after")
    def _compatible(self) -> Self:
        if self.num_beams > 1 and (self.constrained or self.logprobs is not None):
            raise ValueError(
                "beams are searched without `json_schema`, forced calls and `logprobs`; leave "
                "num_beams out, or these"
            )
        if self.stop and self.constrained:
            raise ValueError(
                "a stop string may end an answer in the middle of its JSON; leave `stop` out with "
                "`json_schema` and forced calls"
            )
        return self

    @property
    def forces_call(self) -> bool:
        """Whether the answer must be a call of a tool."""
        return self.tool_choice not in _UNFORCED

    @property
    def constrained(self) -> bool:
        """Whether the answer has a form that it must be in."""
        return self.json_schema is not None or self.forces_call

    def samples(self, config: GenerationConfig) -> bool:
        """Whether tokens are drawn at random, by a model with this config."""
        if self.temperature == 0:
            return False
        if self.do_sample is not None:
            return self.do_sample
        given = (self.temperature, self.top_p, self.top_k)
        return any(v is not None for v in given) or bool(config.do_sample)

    def in_common(self, model: PreTrainedModel) -> Settings | None:
        """What requests that share a batch have equal; None for one that is answered alone.

        Lengths and stop strings are each row's own affair, and a greedy answer draws nothing.
        Random draws and beams of one request would depend on who else is in the batch.
        """
        if self.samples(model.generation_config) or self.num_beams > 1:
            return None
        own = {name: Settings.model_fields[name].default for name in _EACH_ROWS_OWN}
        if model.generation_config.forced_eos_token_id is not None:
            own["max_new_tokens"] = self.max_new_tokens  # the token is forced there
        return self.model_copy(update=own | {"do_sample": False})


def json_text(schema: Mapping[str, Any]) -> str:
    """A schema as JSON, its keys in their order, which is that of the answer.

    Raises:
        ValueError: it holds what JSON does not have.
    """
    try:
        return json.dumps(schema, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"this schema is no JSON: {error}") from error


def ends(config: GenerationConfig) -> frozenset[int]:
    """The tokens that end an answer of a model with this config."""
    ids = config.eos_token_id
    if ids is None:
        return frozenset()
    return frozenset(ids if isinstance(ids, list | tuple) else [ids])


def generation_config(model: PreTrainedModel, settings: Settings) -> GenerationConfig:
    """A copy of the model's own config with `settings` in it; the model's stays as it is.

    Raises:
        UnsupportedModelError: the model's config asks for something a guard cannot work with.
    """
    _refuse_unguardable(model.generation_config)
    config: Any = copy.deepcopy(model.generation_config)
    sampling = settings.samples(model.generation_config)
    wanted: dict[str, Any] = {
        "max_new_tokens": settings.max_new_tokens,
        "do_sample": sampling,
        "num_beams": settings.num_beams,
        "num_return_sequences": 1,
        "return_dict_in_generate": False,
        "output_attentions": False,
        "output_hidden_states": False,
        "output_scores": False,
        "output_logits": False,
    }
    for name in ("temperature", "top_p", "top_k", "repetition_penalty"):
        value = getattr(settings, name)
        if value is not None:
            wanted[name] = value
    if not sampling:
        wanted |= {"temperature": 1.0, "top_p": 1.0, "top_k": 50}  # neutral: no warning
    config.update(**wanted)
    _refuse_mode(config)
    result: GenerationConfig = config
    return result


def _refuse_unguardable(config: GenerationConfig) -> None:
    """Some ways of generating hide the prompt position or emit tokens unseen."""
    for name, allowed in _REFUSED.items():
        value = getattr(config, name, None)
        if value not in allowed:
            raise UnsupportedModelError(
                f"the model's generation_config sets {name}={value!r}, which a guard cannot work "
                "with; unset it (stop strings: pass `stop=`)"
            )
    count = getattr(config, "num_return_sequences", None)
    if count not in (None, 1):
        raise UnsupportedModelError(
            f"the model's generation_config sets num_return_sequences={count}; unset it: "
            + _ASK_AGAIN
        )
    if config.use_cache is False and config.prefill_chunk_size is not None:
        raise UnsupportedModelError(
            "the model's generation_config sets prefill_chunk_size and use_cache=False; chunks "
            "need a cache: unset one of them"
        )


def _refuse_mode(config: GenerationConfig) -> None:
    """A mode is named by the settings that ask for it."""
    asked = {name: getattr(config, name, None) for name in _ASKS_FOR}
    given = {name: value for name, value in asked.items() if value not in (None, False)}
    # Contrastive search gives way to sampling and beams; the other settings never go unheard.
    if given.keys() == {"penalty_alpha"} and config.get_generation_mode() in _MODES:
        return
    for name, value in given.items():
        raise UnsupportedModelError(
            f"the model's generation_config sets {name}={value!r} and so asks for "
            f"{_ASKS_FOR[name]}; a guard supports greedy search, sampling and beam search: unset it"
        )
    mode = config.get_generation_mode()
    if mode not in _MODES:
        raise UnsupportedModelError(
            f"the model's generation_config asks for {mode.value}; a guard supports greedy search, "
            "sampling and beam search"
        )


_DRAWING = threading.Lock()


@contextmanager
def seeded(loaded: LoadedModel, settings: Settings) -> Iterator[None]:
    """Sample as after `torch.manual_seed(seed)`, and leave the generators as they were.

    All models of a process draw from the same generators, so sampled answers are made one after
    another. What remains: code outside the guards that draws meanwhile, and a callback of a sampled
    request must not wait for a sampled answer of another model.
    """
    with ExitStack() as held:
        if settings.seed is not None or settings.samples(loaded.model.generation_config):
            held.enter_context(_DRAWING)
        if settings.seed is not None:
            held.enter_context(_from_seed(loaded.device.type, settings.seed))
        yield


@contextmanager
def _from_seed(kind: str, seed: int) -> Iterator[None]:
    module: Any = getattr(torch, kind, None)
    devices = list(range(module.device_count())) if kind != "cpu" and module is not None else []
    with torch.random.fork_rng(devices, device_type="cuda" if kind == "cpu" else kind):
        torch.manual_seed(seed)
        yield


def _forked() -> None:
    """A child has no thread but its own: whoever held the lock will never give it back there."""
    global _DRAWING
    _DRAWING = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
