"""Ways of generating: each either gives what plain transformers gives, or is refused clearly."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import CompileConfig

from guardrail.conformance import checks, reference
from guardrail.conformance.reference import DoesNotApplyError, expect, traced
from guardrail.conformance.subject import TOKENS, rules, score_of
from guardrail.decide.detector import Detector
from guardrail.errors import UnsupportedModelError
from guardrail.guard import Guard
from guardrail.model.generate import RowControl, generate_rows
from guardrail.model.settings import Settings
from guardrail.types import Action
from tests.conformance.mixed_batch import mixed_batch
from tests.conformance.slow import configured, exact, generate_if_possible, slow_tokens

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from guardrail.conformance.checks import Figures
    from guardrail.conformance.subject import Ask, Subject
    from guardrail.model.prefill import Ruling
    from guardrail.types import Request, Result

LOOKED_UP = 32  # new tokens with prompt lookup: enough for an answer to repeat itself
_COMPILED = ("_compiled_call", "_last_compile_config")
_ROUNDS = 3


def static_cache(subject: Subject) -> Figures:
    """With a static cache rows pass, are steered (with their next token) and flagged as ever."""
    return _as_plain(subject, steer_tokens=1, cache_implementation="static")


def chunked(subject: Subject) -> Figures:
    """With the prompt read in chunks, nothing changes; of pictures that is asked by itself."""
    config = {"prefill_chunk_size": 4}
    figures = _as_plain(subject, steer_tokens=1, **config)
    if subject.loaded.is_multimodal:
        try:
            figures["image"] = _same_score(subject, subject.pictures[0], **config)
        except (UnsupportedModelError, DoesNotApplyError) as error:
            figures["note"] = f"not for requests with pictures: {error}"
    return figures


def beams(subject: Subject) -> Figures:
    """A beam search has one verdict for all beams of a request."""
    plain = generate_if_possible(subject.model, subject.text_inputs, TOKENS, num_beams=2)
    case = mixed_batch(subject)
    slow = slow_tokens(subject, case.vectors, num_beams=2)
    return case.expect(subject, case.answers(subject, beams=2), plain, slow) | {"beams": 2}


def compiled(subject: Subject) -> Figures:
    """Decoding steps that transformers compiles by itself go on being compiled, and are right."""
    case = mixed_batch(subject)
    with _compiling(subject) as (config, runs):
        plain = generate_if_possible(
            subject.model, subject.text_inputs, TOKENS, cache_implementation="static"
        )
        with configured(subject, **config):
            answers = case.answers(subject)  # a compiled pass meets no hooks but the guard's
        guarded = runs()
        if guarded == 0:
            generate_if_possible(
                subject.model, subject.text_inputs, 2, disable_compile=False, **config
            )
            expect(runs() == 0, "decoding is compiled plainly, and is not when guarded")
            raise DoesNotApplyError("transformers compiles no decoding step of this model")
    slow = slow_tokens(subject, case.vectors)
    return case.expect(subject, answers, plain, slow) | {"compiled_runs": guarded}


def assisted(subject: Subject) -> Figures:
    """Prompt lookup gives several tokens a pass; the first may not be out before the verdict."""
    config = {"prompt_lookup_num_tokens": 2}
    apart = _same_score(subject, subject.texts[0], **config)
    artefact = subject.artefact()
    shortest = LOOKED_UP
    for ask in subject.texts:
        with traced(subject.model) as trace:
            plain = reference.generate(subject.model, ask.inputs, LOOKED_UP, **config)
        with configured(subject, **config):
            (row,) = subject.answers(subject.encode([ask]), artefact, rules(), tokens=LOOKED_UP)
        tokens = list(row.token_ids)
        expect([tokens] == plain, f"it gives {tokens}, plainly {plain}")
        shortest = min(shortest, trace.passes)
    figures: Figures = {"new_tokens": LOOKED_UP, "fewest_passes": shortest}
    if shortest == LOOKED_UP:
        figures["note"] = "as far as seen: this model took up no token that was looked up"
    return figures | {"score_from_reference": apart}


def _same_score(subject: Subject, ask: Ask, **config: Any) -> float:
    """How far the score of a lone request that passes is from the reference, in such a mode."""
    plain = generate_if_possible(subject.model, ask.inputs, TOKENS, **config)
    artefact = subject.artefact()
    with configured(subject, **config):
        (row,) = subject.answers(subject.encode([ask]), artefact, rules())
    expect([list(row.token_ids)] == plain, f"it gives {row.token_ids}, plainly {plain}")
    apart = abs(score_of(row.ruling) - subject.scores(artefact, [ask])[0])
    bound = subject.tolerance(artefact, [ask])
    expect(apart <= bound, f"the score is {apart:.2e} from the reference (bound {bound:.2e})")
    return apart


def sequences(subject: Subject) -> Figures:
    """Several answers to one request, each with the request's verdict."""
    with Guard(subject.loaded, subject.artefact(), policy=rules()) as guard:
        ask: Callable[..., Any] = guard.generate
        answers = ask(
            subject.texts[0].request, max_new_tokens=TOKENS, num_return_sequences=2, seed=0
        )
    expect(
        isinstance(answers, list | tuple) and len(answers) == 2,
        f"two answers were asked for; what came is a {type(answers).__name__}",
    )
    return {"answers": len(answers)}


def _as_plain(subject: Subject, *, steer_tokens: int, **config: Any) -> Figures:
    """Rows pass, are steered and are flagged in a way set in the model's own configuration."""
    plain = generate_if_possible(subject.model, subject.text_inputs, TOKENS, **config)
    case = mixed_batch(subject, steer_tokens=steer_tokens)
    with configured(subject, **config):
        answers = case.answers(subject)
    slow = slow_tokens(subject, case.vectors, steer_tokens=steer_tokens)
    return case.expect(subject, answers, plain, slow) | {"steer_tokens": steer_tokens}


@contextmanager
def _compiling(subject: Subject) -> Iterator[tuple[dict[str, Any], Callable[[], int]]]:
    """Settings that compile decoding on any device, and how many compiled graphs have run."""
    runs: list[None] = []

    def backend(graph: Any, _example: Any) -> Any:
        def run(*args: Any) -> Any:
            runs.append(None)
            return graph.forward(*args)

        return run

    how = CompileConfig(backend=backend, mode=None)
    how._compile_all_devices = True
    torch.compiler.reset()  # a process that compiled a lot would fall back to eager steps unseen
    kept = {name: vars(subject.model).pop(name, None) for name in _COMPILED}
    try:
        yield {"cache_implementation": "static", "compile_config": how}, lambda: len(runs)
    finally:
        for name, value in kept.items():
            vars(subject.model).pop(name, None)
            if value is not None:
                setattr(subject.model, name, value)


def stream(subject: Subject) -> Figures:
    """The verdict is there after one pass, before the first token."""
    passes = _passes_at_the_verdict(subject)
    return checks.stream(subject) | {"passes_before_the_verdict": passes}


def _passes_at_the_verdict(subject: Subject) -> int:
    """Decoder passes before the ruling is handed out, which has to come before any token."""
    detector = Detector.from_artefact(subject.artefact(), rules())
    order: list[str] = []
    passes: list[int] = []

    def token(_token: int) -> bool:
        order.append("token")
        return False

    def ruled(_ruling: Ruling) -> None:
        order.append("ruling")
        passes.append(trace.passes)

    with traced(subject.model) as trace:
        generate_rows(
            subject.loaded,
            subject.encode(subject.texts[:1]),
            detector,
            Settings(max_new_tokens=TOKENS, do_sample=False),
            [RowControl(on_ruling=ruled, on_token=token)],
            policy=detector.policy,
        )
    expect(order[:1] == ["ruling"] and order.count("ruling") == 1, f"it went {order}")
    expect(passes == [1], f"the verdict came after {passes} passes of the decoder")
    return passes[0]


def concurrency(subject: Subject) -> Figures:
    """Threads with different requests each get their own verdict and answer."""
    case = mixed_batch(subject)
    requests = [text.request for text in subject.texts] * _ROUNDS
    wanted = case.actions * _ROUNDS
    plain = reference.generate(subject.model, subject.text_inputs, TOKENS)
    with Guard(subject.loaded, case.artefact, policy=case.policy) as guard:

        def ask(request: Request) -> Result:
            return guard.generate(request, max_new_tokens=TOKENS, temperature=0)

        with ThreadPoolExecutor(max_workers=4) as pool:
            results = list(pool.map(ask, requests))
    bound = subject.tolerance(case.artefact, subject.texts)
    for number, (result, action) in enumerate(zip(results, wanted, strict=True)):
        row = number % len(subject.texts)
        verdict = result.verdict
        expect(verdict.action is action, f"text {row} got {verdict.action}, wanted {action}")
        apart = abs((verdict.score or 0.0) - case.scores[row])
        expect(
            apart <= bound,
            f"text {row} has a score {apart:.2e} from the reference (bound {bound:.2e})",
        )
        if action is Action.FLAG:
            expect(result.refused_by_guard, f"text {row} was flagged and answered all the same")
        elif action is Action.PASS and exact(subject):
            expect(list(result.token_ids) == plain[row], f"text {row} got another answer")
    return {"threads": 4, "requests": len(results)}
