"""A readout of what the model says: fitted on its own benign answers, and on text alone.

Nothing harmful is generated. An answer that complies is stood in for in two ways: by openings that
restate an unsafe prompt as an answer would, and break off before they say anything, and by
skeletons, answers with nothing in them but their order, behind an unsafe prompt. What stands
against them are the same behind safe prompts, benign answers of the model itself, and refusals of
unsafe prompts. Half of the openings stand behind another, harmless prompt. So neither a prompt nor
the words of its answer tell the classes apart alone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from itertools import product
from typing import TYPE_CHECKING, Any

import torch

from guardrail.artefact.artefact import ANSWERS
from guardrail.artefact.header import Answers
from guardrail.errors import CalibrationError, DatasetError, GuardrailError
from guardrail.extras import require_extra
from guardrail.fit.collect import Collector, text_request
from guardrail.fit.dataset import load_contrast
from guardrail.fit.forms import SLOT, Words
from guardrail.fit.joint import FIRSTS, WIDTHS, highest_windows
from guardrail.fit.outcome import TRAFFIC, window_tensors, windows_header
from guardrail.fit.prompts import grouped, spread
from guardrail.fit.select import MINIMUM_AUROC, is_unsafe
from guardrail.fit.traffic import Placed
from guardrail.fit.windows import TokenRows, over_layers, trained
from guardrail.model.fingerprint import require_fitted_on
from guardrail.model.generate import begun_rows
from guardrail.model.settings import Settings
from guardrail.stats import auroc, conformal_threshold, needed_scores
from guardrail.types import Message, Request, TextPart

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from guardrail.artefact import Artefact
    from guardrail.decide.windows import WindowReadout
    from guardrail.fit.collect import Progress, Read
    from guardrail.fit.dataset import ContrastSet, Split
    from guardrail.guard import Guard
    from guardrail.model.load import LoadedModel
    from guardrail.types import Verdict

RATE = 0.01
TOKENS = 64  # of an answer of the model's own
COUNTS: dict[Split, int] = {"fit": 32, "select": 16, "calibrate": 48}
"""Safe prompts of a kind whose answers are read; unsafe ones are three times as many."""
OWN, RESTATED, SKELETON, REFUSED = "own", "restated", "skeleton", "refused"
STAGE = "answers"


@dataclass(frozen=True)
class Said:
    """An answer to a prompt: what kind of words it is of (`what`), in a split.

    `unsafe` is its class: whether it does what an unsafe prompt asks.
    """

    what: str
    split: Split
    asked: str
    answer: str
    unsafe: bool = False

    @property
    def request(self) -> Request:
        """The chat that ends with it."""
        turns = (("user", self.asked), ("assistant", self.answer))
        return Request(tuple(Message(role=r, parts=(TextPart(text),)) for r, text in turns))


def with_answers(
    artefact: Artefact,
    loaded: LoadedModel,
    *,
    data: str | Path | None = None,
    extend: bool = True,
    rate: float = RATE,
    tokens: int = TOKENS,
    batch_size: int = 16,
    work_dir: Path | None = None,
    progress: Progress | None = None,
) -> Artefact:
    """The artefact with a readout of answers; with a warning in its place where none is usable.

    Args:
        artefact: of this model.
        loaded: the model, which answers some 290 short prompts.
        data: contrast prompts of one's own, as in `fit`.
        extend: add them to the packaged ones.
        rate: target share of benign answers that exceed the threshold.
        tokens: the most tokens of an answer of the model's own.
        batch_size: prompts in one forward pass.
        work_dir: keep residuals there as they are read.
        progress: called with a stage's name, what is done of it, and its total.

    Raises:
        ArtefactMismatchError: the artefact was fitted on another model.
        CalibrationError: too few benign prompts for the rate.
        DatasetError: the prompts cannot be used.
        MissingExtraError: the extra `fit` is not installed.
    """
    require_extra("fit")
    identity = require_fitted_on(artefact, loaded)
    contrast = load_contrast(data, extend=extend)
    collect = Collector(
        loaded,
        batch_size=batch_size,
        work_dir=work_dir,
        key=identity.model_dump_json(),
        judged=frozenset({"assistant"}),
        progress=progress,
    )
    count = max(COUNTS["calibrate"], -(-needed_scores(rate) // 3))
    said = [
        *restated(contrast),
        *own_answers(collect, contrast, {**COUNTS, "calibrate": count}, tokens),
    ]
    reads = collect.read([one.request for one in said], STAGE)
    return _decided(artefact, said, reads, collect.token_layers, rate=rate, tokens=tokens)


def restated(contrast: ContrastSet) -> list[Said]:
    """Openings and skeletons of both classes, and refusals of unsafe prompts.

    What is around a prompt is drawn without a look at it, and not from what judges the fit.
    """
    found = []
    for (split, kind), group in grouped(contrast).items():
        if split == "calibrate":
            continue
        unsafe = is_unsafe(kind)
        words = Words("fit" if split == "fit" else "held out", random.Random(f"{split} {kind}"))
        for number, i in enumerate(spread(group, COUNTS[split] * (3 if unsafe else 1))):
            text = contrast.prompts[i].text
            asked = text if number % 2 else words.frame("exchange").text
            said = text.lower() if words.heads() else text
            opening = words.frame("restated").text.replace(SLOT, said)
            found.append(Said(RESTATED, split, asked, opening, unsafe))
            found.append(Said(SKELETON, split, text, words.frame("skeleton").text, unsafe))
            if unsafe:
                found.append(Said(REFUSED, split, text, words.frame("refusal").text))
    return found


def own_answers(
    collect: Collector, contrast: ContrastSet, counts: dict[Split, int], tokens: int
) -> list[Said]:
    """What the model itself answers to safe prompts, greedily; empty answers are left out."""
    places = [
        (split, i)
        for (split, kind), group in grouped(contrast).items()
        if not is_unsafe(kind)
        for i in spread(group, counts[split])
    ]
    settings = Settings(max_new_tokens=tokens, do_sample=False)
    asked = [contrast.prompts[i].text for _, i in places]

    def answered(requests: Sequence[Request]) -> list[str]:
        encoded = collect.encoder.encode(requests)
        rows, _ = begun_rows(collect.loaded, encoded, None, settings)
        decode: Any = collect.loaded.tokenizer.decode
        return [str(decode(row.token_ids, skip_special_tokens=True)).strip() for row in rows]

    answers = collect.each([text_request(text) for text in asked], answered, "benign answers")
    return [
        Said(OWN, split, text, answer)
        for (split, _), text, answer in zip(places, asked, answers, strict=True)
        if answer
    ]


def _decided(
    artefact: Artefact,
    said: Sequence[Said],
    reads: Sequence[Read],
    layers: tuple[int, ...],
    *,
    rate: float,
    tokens: int,
) -> Artefact:
    """Train on the fit split, choose on the selection split, set the threshold on the third."""
    rows = list(zip(said, reads, strict=True))
    fitted = [(one.unsafe, read) for one, read in rows if one.split == "fit"]
    fitted = [(unsafe, read) for unsafe, read in fitted if len(read.tokens) > 1]
    shown = {unsafe for unsafe, _ in fitted}
    if shown != {True, False}:
        return artefact.without_answers("the model's chat template does not show answers whole")
    singles = trained(TokenRows(layers, [r.tokens for _, r in fitted], [u for u, _ in fitted]))
    held = [(one, read) for one, read in rows if one.split == "select"]
    tried = {
        (width, first): over_layers(singles, width, first)
        for width, first in product(WIDTHS, FIRSTS)
    }
    figures = {key: _figures(windows, held) for key, windows in tried.items()}
    best = max(tried, key=lambda key: figures[key]["all"])
    if figures[best]["all"] < MINIMUM_AUROC:
        return artefact.without_answers(
            f"no usable readout: held-out openings of unsafe answers have an AUROC of "
            f"{figures[best]['all']:.3f}, {MINIMUM_AUROC:.2f} is asked",
        )
    windows = _scaled(tried[best], held)
    benign = [read for one, read in rows if one.split == "calibrate"]
    scores = [s for s in highest_windows(windows, benign).tolist() if s > -torch.inf]
    try:
        threshold = conformal_threshold(scores, rate)
    except ValueError as error:
        raise CalibrationError(f"benign answers: {error}; raise the rate of answers") from error
    made = Answers(
        windows=windows_header(windows, {"auroc": figures[best]}),
        scores=tuple(sorted(scores)),
        target=rate,
        threshold=threshold,
        source="the model's own answers to safe contrast prompts",
        tokens=tokens,
    )
    return artefact.revised(
        tensors={**artefact.tensors, **window_tensors(windows, "answer")},
        answers=made,
        warnings=tuple(w for w in artefact.header.warnings if not w.startswith(ANSWERS)),
    )


def _figures(windows: WindowReadout, held: Sequence[tuple[Said, Read]]) -> dict[str, float]:
    """AUROC on held-out prompts: of openings and skeletons each, and of all unsafe against all.

    The model's own answers and refusals are told from both.
    """
    scores: dict[tuple[str, bool], list[float]] = {}
    read = highest_windows(windows, [read for _, read in held]).tolist()
    for (said, _), score in zip(held, read, strict=True):
        scores.setdefault((said.what, said.unsafe), []).append(score)
    unsafe = [score for (_, bad), some in scores.items() if bad for score in some]
    safe = {what: some for (what, bad), some in scores.items() if not bad}
    figures = {what: auroc(scores.get((what, True), unsafe), some) for what, some in safe.items()}
    return {**figures, "all": auroc(unsafe, [s for some in safe.values() for s in some])}


def _scaled(windows: WindowReadout, held: Sequence[tuple[Said, Read]]) -> WindowReadout:
    """On a scale where the model's own benign answers are 0 in the mean, unsafe openings 1."""
    scores = highest_windows(windows, [read for _, read in held])
    known = scores.isfinite()
    unsafe = torch.tensor([said.unsafe for said, _ in held])
    own = torch.tensor([said.what == OWN for said, _ in held])
    zero, one = float(scores[known & own].mean()), float(scores[known & unsafe].mean())
    return replace(windows, zero=zero, gap=max(one - zero, 1e-6))


def calibrate_answers(
    guard: Guard, values: Iterable[Any], *, rate: float = RATE, tokens: int = 256
) -> Artefact:
    """A new artefact whose threshold of answers fits answers to benign requests of one's own.

    The guard answers each of `values`, greedily, and stops nothing meanwhile. `Placed` values are
    named by their place when one cannot be answered.

    Raises:
        ConfigurationError: the artefact cannot watch answers.
        CalibrationError: too few answers for the rate, or one could not be judged.
        DatasetError: a request that cannot be answered.
        MissingExtraError: the extra `fit` is not installed.
    """
    require_extra("fit")
    require_fitted_on(guard.artefact, guard.loaded)
    answers = guard.artefact.require_answers()
    own = {"answer_rate": None, "answer_threshold": None}  # the scores so far may not carry them
    rules = guard.policy.model_copy(update={"mode": "shadow", "watch": "answer", **own})
    with guard.with_policy(rules) as watching:
        found = [_answered(watching, value, tokens) for value in values]
    if any(one is not None and one.score is None for one in found):
        raise CalibrationError("an answer could not be judged; see the log")
    scores = [one.score for one in found if one is not None and one.score is not None]
    try:
        threshold = conformal_threshold(scores, rate)
    except ValueError as error:
        raise CalibrationError(f"answers to benign requests: {error}") from error
    update = {
        "scores": tuple(sorted(scores)),
        "target": rate,
        "threshold": threshold,
        "source": TRAFFIC,
        "tokens": tokens,
    }
    return guard.artefact.revised(answers=answers.model_copy(update=update))


def _answered(guard: Guard, value: Any, tokens: int) -> Verdict | None:
    """The verdict on the answer to one request."""
    where, value = value if isinstance(value, Placed) else ("a request", value)
    try:
        return guard.generate(value, max_new_tokens=tokens, do_sample=False).answer
    except GuardrailError as error:
        raise DatasetError(f"{where}: {error}") from error
