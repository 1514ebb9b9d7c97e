"""How an answer is generated, and what of a model's own generation config is kept."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, Field
from transformers.generation.configuration_utils import GenerationMode

from guardrail.errors import UnsupportedModelError

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

_MODES = {
    GenerationMode.GREEDY_SEARCH,
    GenerationMode.SAMPLE,
    GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
}
# Settings that end rows or feed the model behind the guard's back.
_REFUSED: dict[str, tuple[object, ...]] = {
    "stop_strings": (None,),
    "guidance_scale": (None, 1, 1.0),
    "token_healing": (None, False),
    "cache_implementation": (None, "dynamic", "static", "hybrid", "quantized", "offloaded"),
}


class Settings(BaseModel):
    """One request's generation settings. None: as the model's generation config says.

    Temperature 0 is greedy search; another one, `top_p` or `top_k` asks for sampling, unless
    `do_sample` says otherwise. Rows of a batch share their settings; `seed` makes a sampled answer
    repeatable.
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

    def samples(self, model: PreTrainedModel) -> bool:
        """Whether tokens are drawn at random."""
        if self.temperature == 0:
            return False
        if self.do_sample is not None:
            return self.do_sample
        given = (self.temperature, self.top_p, self.top_k)
        return any(v is not None for v in given) or bool(model.generation_config.do_sample)


def generation_config(model: PreTrainedModel, settings: Settings) -> GenerationConfig:
    """A copy of the model's own config with `settings` in it; the model's stays as it is."""
    config: Any = copy.deepcopy(model.generation_config)
    sampling = settings.samples(model)
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
    _refuse_unguardable(config)
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
    mode = config.get_generation_mode()
    if mode not in _MODES:
        raise UnsupportedModelError(
            f"the model's generation_config asks for {mode.value}; a guard supports greedy search, "
            "sampling and beam search"
        )
