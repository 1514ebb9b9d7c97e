"""What a request to a model may say beside what is read, and of which type each value is.

Only what changes how an answer is made or told, never what the model reads: no template or part of
one, no search, no cut of the prompt. So a key that is missing here is refused whatever it holds: a
number or a switch may change the prompt as well as a text may. Words in a setting (a stop, a user's
name, a note in the metadata) are judged all the same: whoever answers may show them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from guardrail.errors import UnsupportedContentError
from guardrail.front.arguments import WORD
from guardrail.inputs.labels import worded

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

FORMATS = ("response_format", "text")
"""Settings whose schema a model is shown: they are read with the chat."""

_Word = Annotated[str, Field(pattern=f"^{WORD}$")]
_Name = Annotated[str, Field(pattern="^[A-Za-z0-9_.:/-]{1,64}$")]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", hide_input_in_errors=True)


class _StreamOptions(_Strict):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None


class _Reasoning(_Strict):
    effort: _Word | None = None
    summary: _Word | None = None
    generate_summary: _Word | None = None
    enabled: bool | None = None
    exclude: bool | None = None
    max_tokens: int | None = None


class _Function(_Strict):
    name: _Name


class _Tool(_Strict):
    type: Literal["function"]
    name: _Name | None = None
    function: _Function | None = None


class _Allowed(_Strict):
    mode: _Word | None = None
    tools: list[_Tool] | None = None


class _ToolChoice(_Allowed):
    type: Literal["function", "allowed_tools"]
    name: _Name | None = None
    function: _Function | None = None
    allowed_tools: _Allowed | None = None


class _Voice(_Strict):
    id: _Name


class _Audio(_Strict):
    voice: _Name | _Voice | None = None
    format: _Name | None = None


class _TextFormat(_Strict):
    format: Any = None  # is read: it may hold a schema
    verbosity: _Word | None = None


class _Settings(_Strict):
    """The keys of the OpenAI API, and the numbers for sampling that other servers take beside."""

    model: str | None = None

    # which tokens are chosen
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    top_a: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    tfs_z: float | None = None
    mirostat: int | None = None
    mirostat_tau: float | None = None
    mirostat_eta: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    repeat_penalty: float | None = None
    repeat_last_n: int | None = None
    length_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    use_beam_search: bool | None = None
    best_of: int | None = None
    n: int | None = None

    # how long the answer is
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    max_output_tokens: int | None = None
    max_tool_calls: int | None = None
    min_tokens: int | None = None
    n_predict: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool | None = None
    truncation: Literal["disabled"] | None = None  # "auto" cuts what is read

    # what the model may do; tools and formats are read
    tool_choice: _Word | _ToolChoice | None = None
    function_call: _Word | _Function | None = None
    parallel_tool_calls: bool | None = None
    response_format: Any = None
    text: str | _TextFormat | None = None
    reasoning: _Reasoning | None = None
    reasoning_effort: _Word | None = None
    verbosity: _Word | None = None
    modalities: list[_Name] | None = None
    audio: _Audio | None = None

    # how the answer is told
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    echo: bool | None = None
    include: list[_Name] | None = None
    logprobs: bool | int | None = None
    top_logprobs: int | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None

    # what the server notes of it
    user: str | None = None
    safety_identifier: str | None = None
    metadata: dict[str, str | float | bool | None] | None = None
    store: bool | None = None
    background: bool | None = None
    service_tier: _Name | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: _Name | None = None

    # what is refused unless it says nothing
    instructions: None = None
    suffix: None = None
    prediction: None = None
    previous_response_id: None = None
    conversation: None = None
    web_search_options: None = None
    tools: None = None
    functions: None = None
    messages: None = None
    input: None = None
    prompt: None = None


def setting_words(body: Mapping[str, Any], known: Collection[str]) -> list[str]:
    """The words in a body's settings, which are all that it has beside the `known` keys.

    Raises:
        UnsupportedContentError: a key that is neither, or a setting of another type.
    """
    settings = {key: body[key] for key in body if key not in known}
    try:
        _Settings.model_validate(settings)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
    else:
        return worded({key: held for key, held in settings.items() if key not in FORMATS})
    key, *inner = map(str, first["loc"])
    if first["type"] in ("extra_forbidden", "none_required") and not inner:
        raise UnsupportedContentError(
            f"the body has the key {key[:80]!r}, which is not read and would go unchecked; "
            "leave it out, or let the route name it as unchecked or read it by its own select"
        )
    raise UnsupportedContentError(
        f"{key} holds something that is no setting and would go unchecked "
        f"({'.'.join([key, *inner])[:80]}: {first['msg'][:200]})"
    )
