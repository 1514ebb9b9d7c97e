"""Does vLLM read what the artefact was fitted on? Scores, verdicts and edits against transformers.

Kernels differ, and so may precision and quantisation: a threshold is a score that a model gave in
transformers. Packaged prompts and drawn pictures are judged by both, by vLLM twice: what differs
between its own two runs is noise, and no difference below that says anything.
"""

from __future__ import annotations

import gc
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import torch

from guardrail.artefact import Artefact
from guardrail.decide.detector import Detector
from guardrail.errors import DetectorError
from guardrail.extras import require
from guardrail.fit.collect import text_request
from guardrail.fit.dataset import load_contrast
from guardrail.fit.prompts import drawn, drawn_unsafe, grouped, spread
from guardrail.guard import Guard
from guardrail.model.encode import Encoder
from guardrail.model.generate import next_token_logits
from guardrail.model.load import load_model
from guardrail.policy import Policy
from guardrail.stats import Frozen
from guardrail.types import Action, ImagePart, Request, TextPart, Verdict
from guardrail.vllm.options import EVERYBODY, NAME, engine_options

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

    from guardrail.fit.dataset import ContrastSet
    from guardrail.model.load import LoadedModel

TOLERANCE = 0.05  # text gaps: a tenth of what lies between usual thresholds
PER_KIND, DRAWN = 6, 3


class Conclusion(StrEnum):
    """`STALE`: thresholds are of other scores. `INCONCLUSIVE`: vLLM differs from itself."""

    PASS = "PASS"
    STALE = "THRESHOLD STALE"
    INCONCLUSIVE = "INCONCLUSIVE"


class Parity(Frozen):
    """What was compared, and how far both are apart.

    Scores are in text gaps: `score_apart` is the largest difference of an engine's score from
    transformers', `noise` that of its two runs. `changed` counts verdicts that differ and cannot be
    that noise; `logprob_apart` is the largest difference of a first token's log-probabilities, over
    `steered` steered prompts and those that passed, among the likeliest tokens of the engine.
    """

    engine: str
    dtype: str
    texts: int
    pictures: int
    steered: int
    score_apart: float
    noise: float
    changed: int
    logprob_apart: float

    @property
    def conclusion(self) -> Conclusion:
        """What the figures say."""
        if not self.noise <= TOLERANCE:
            return Conclusion.INCONCLUSIVE
        if self.changed or not self.score_apart <= TOLERANCE + self.noise:
            return Conclusion.STALE
        return Conclusion.PASS


def compare(
    model: str, artefact: Path, *, options: Mapping[str, Any] | None = None, **loading: Any
) -> tuple[Parity, Artefact]:
    """Compare, and give the artefact with the result in `extra["vllm"]`.

    Args:
        model: the folder that both load.
        artefact: of this model.
        options: of `vllm.LLM`, such as `dtype` or `enforce_eager`.
        loading: of `load_model`, for transformers.

    Raises:
        ArtefactMismatchError: the artefact is of another model.
        MissingExtraError: vLLM is not installed.
        DetectorError: a prompt has no finite score, in either.
    """
    fitted, policy = Artefact.load(artefact), Policy(judge=EVERYBODY)
    loaded = load_model(model, **loading)
    asked = requests(load_contrast(), pictures=loaded.is_multimodal)
    with Guard(loaded, fitted, policy=policy) as guard:
        wanted = guard.check_batch(asked)
    logprobs = first_logprobs(loaded, Detector.from_artefact(fitted, policy), asked)
    multimodal = loaded.is_multimodal
    del loaded, guard
    gc.collect()
    torch.cuda.empty_cache()  # vLLM takes what is free; nothing is done without a GPU
    runs, told, about = _in_vllm(model, artefact, policy, asked, multimodal, options or {})
    scores = [[_score(verdict) for verdict in run] for run in runs]
    noise = max(abs(a - b) for a, b in zip(*scores, strict=True))
    apart = [abs(a - _score(w)) for a, w in zip(scores[0], wanted, strict=True)]
    kept = [
        _logprobs_apart(told[i], logprobs[i])
        for i, verdict in enumerate(wanted)
        if verdict.action is not Action.FLAG and told[i]
    ]
    found = Parity(
        **about,
        texts=sum(not request.images for request in asked),
        pictures=sum(bool(request.images) for request in asked),
        steered=sum(verdict.action is Action.STEER for verdict in wanted),
        score_apart=max(apart),
        noise=noise,
        changed=sum(map(_differ, runs[0], wanted, [max(noise, 1e-6)] * len(wanted))),
        logprob_apart=max(kept, default=0.0),
    )
    result = found.model_dump(mode="json") | {"conclusion": str(found.conclusion)}
    return found, fitted.revised(extra={**fitted.header.extra, "vllm": result})


def requests(contrast: ContrastSet, *, pictures: bool) -> list[Request]:
    """Held-out prompts of every kind, bare and, with `pictures`, written into pictures."""
    places = [
        place
        for (split, _), group in grouped(contrast).items()
        if split == "calibrate"
        for place in spread(group, PER_KIND)
    ]
    found = [text_request(contrast.prompts[place].text) for place in places]
    if pictures:
        samples = [*drawn(contrast, DRAWN), *drawn_unsafe(contrast, "calibrate", 2 * DRAWN)]
        found += [sample.request for sample in samples]
    return found


def first_logprobs(
    loaded: LoadedModel, detector: Detector, asked: Sequence[Request]
) -> list[Tensor]:
    """Of each answer's first token in transformers, edits included: (vocab,) each."""
    encoder = Encoder(loaded)
    return [
        next_token_logits(loaded, encoder.encode([request]), detector)[0].log_softmax(-1)
        for request in asked
    ]


def _in_vllm(
    model: str,
    artefact: Path,
    policy: Policy,
    asked: Sequence[Request],
    multimodal: bool,
    options: Mapping[str, Any],
) -> tuple[list[list[Verdict]], list[dict[int, float]], dict[str, str]]:
    """Verdicts of two runs, the first one's log-probabilities, and what ran."""
    vllm: Any = require("vllm")
    engine = vllm.LLM(model, **engine_options(artefact, policy), **options)
    form = "openai" if multimodal else "string"
    settings = vllm.SamplingParams(max_tokens=1, temperature=0, logprobs=5)
    chats = [_chat(request) for request in asked]
    runs, told = [], []
    for _ in range(2):
        outputs = engine.chat(chats, settings, use_tqdm=False, chat_template_content_format=form)
        runs.append([Verdict.from_dict(one.kv_transfer_params[NAME]) for one in outputs])
        told.append([_likeliest(one.outputs[0]) for one in outputs])
        engine.llm_engine.reset_prefix_cache()
    dtype = str(engine.llm_engine.vllm_config.model_config.dtype).removeprefix("torch.")
    return runs, told[0], {"engine": f"vllm {vllm.__version__}", "dtype": dtype}


def _likeliest(answer: Any) -> dict[int, float]:
    """Log-probabilities of the first token's likeliest candidates; none of a flagged answer."""
    return {t: one.logprob for t, one in answer.logprobs[0].items()} if answer.logprobs else {}


def _chat(request: Request) -> list[dict[str, Any]]:
    """The request as vLLM takes it."""
    return [
        {"role": message.role, "content": [_part(part) for part in message.parts]}
        for message in request.messages
    ]


def _part(part: object) -> dict[str, Any]:
    match part:
        case TextPart(text):
            return {"type": "text", "text": text}
        case ImagePart(image):
            return {"type": "image_pil", "image_pil": image}
    raise TypeError(f"a {type(part).__name__} is not compared")


def _score(verdict: Verdict) -> float:
    """Of a prompt that could be judged: no difference from an outage says anything."""
    if verdict.score is None:
        raise DetectorError("a prompt of the comparison could not be judged")
    return verdict.score


def _differ(one: Verdict, other: Verdict, noise: float) -> bool:
    """Whether two verdicts differ, and their scores are not within noise of a threshold."""
    near = min(abs(_score(other) - tau) for tau in (other.tau_steer, other.tau_flag))
    return one.action is not other.action and not near <= noise


def _logprobs_apart(told: Mapping[int, float], wanted: Tensor) -> float:
    return max(abs(logprob - float(wanted[token])) for token, logprob in told.items())
