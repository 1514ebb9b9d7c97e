"""Ways of generating: each either gives what plain transformers gives, or is refused clearly."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from transformers import CompileConfig

from guardrail.conformance import reference
from guardrail.conformance.answers import answered
from guardrail.conformance.outcomes import DoesNotApplyError, Figures, expect
from guardrail.conformance.subject import TOKENS, rules
from guardrail.conformance.trace import traced
from guardrail.conformance.trio import trio
from guardrail.errors import UnsupportedModelError
from guardrail.guard import Guard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from guardrail.conformance.subject import Ask, Subject

LOOKED_UP = 32  # new tokens with prompt lookup: enough for an answer to repeat itself


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
    encoded = subject.encode(subject.texts)
    plain = reference.generate_if_possible(subject.model, subject.text_inputs, TOKENS, num_beams=2)
    case = trio(subject)
    answers = answered(subject, encoded, subject.detector(case.artefact, case.policy), beams=2)
    figures = case.expect(subject, answers, plain)
    slow = subject.slow_tokens(case.vectors, num_beams=2)
    return figures | case.expect_steered(answers, slow) | {"beams": 2}


def compiled(subject: Subject) -> Figures:
    """Decoding steps that transformers compiles by itself go on being compiled, and are right."""
    case = trio(subject)
    with _compiling(subject) as (config, runs):
        plain = reference.generate_if_possible(
            subject.model, subject.text_inputs, TOKENS, cache_implementation="static"
        )
        with subject.configured(**config):
            answers = answered(
                subject,
                subject.encode(subject.texts),
                subject.detector(case.artefact, case.policy),
                count=False,
            )
        guarded = runs()
        if guarded == 0:
            reference.generate_if_possible(
                subject.model, subject.text_inputs, 2, disable_compile=False, **config
            )
            expect(runs() == 0, "decoding is compiled plainly, and is not when guarded")
            raise DoesNotApplyError("transformers compiles no decoding step of this model")
        figures = case.expect(subject, answers, plain) | {"compiled_runs": guarded}
    return figures | case.expect_steered(answers, subject.slow_tokens(case.vectors))


def assisted(subject: Subject) -> Figures:
    """Prompt lookup gives several tokens a pass; the first may not be out before the verdict."""
    config = {"prompt_lookup_num_tokens": 2}
    apart = _same_score(subject, subject.texts[0], **config)
    artefact = subject.directions.artefact(subject.layers.read)
    shortest = LOOKED_UP
    for ask in subject.texts:
        with traced(subject.model) as trace:
            plain = reference.generate(subject.model, ask.inputs, LOOKED_UP, **config)
        with subject.configured(**config):
            answers = answered(
                subject,
                subject.encode([ask]),
                subject.detector(artefact, rules()),
                tokens=LOOKED_UP,
            )
        expect(answers.tokens == plain, f"it gives {answers.tokens}, plainly {plain}")
        shortest = min(shortest, trace.passes)
    figures: Figures = {"new_tokens": LOOKED_UP, "fewest_passes": shortest}
    if shortest == LOOKED_UP:
        figures["note"] = "as far as seen: this model took up no token that was looked up"
    return figures | {"score_from_reference": apart}


def _same_score(subject: Subject, ask: Ask, **config: Any) -> float:
    """How far the score of a lone request that passes is from the reference, in such a mode."""
    plain = reference.generate_if_possible(subject.model, ask.inputs, TOKENS, **config)
    artefact = subject.directions.artefact(subject.layers.read)
    with subject.configured(**config):
        answers = answered(subject, subject.encode([ask]), subject.detector(artefact, rules()))
    expect(answers.tokens == plain, f"it gives {answers.tokens}, plainly {plain}")
    apart = abs(answers.scores[0] - subject.scores(artefact, [ask])[0])
    bound = subject.tolerance(artefact, ask.states)
    expect(apart <= bound, f"the score is {apart:.2e} from the reference (bound {bound:.2e})")
    return apart


def sequences(subject: Subject) -> Figures:
    """Several answers to one request, each with the request's verdict."""
    artefact = subject.directions.artefact(subject.layers.read)
    with Guard(subject.loaded, artefact, policy=rules()) as guard:
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
    encoded = subject.encode(subject.texts)
    plain = reference.generate_if_possible(subject.model, subject.text_inputs, TOKENS, **config)
    case = trio(subject, steer_tokens=steer_tokens)
    with subject.configured(**config):
        answers = answered(subject, encoded, subject.detector(case.artefact, case.policy))
    figures = case.expect(subject, answers, plain)
    slow = subject.slow_tokens(case.vectors, steer_tokens=steer_tokens)
    return figures | case.expect_steered(answers, slow) | {"steer_tokens": steer_tokens}


@contextmanager
def _compiling(subject: Subject) -> Iterator[tuple[dict[str, Any], Callable[[], int]]]:
    """Settings that compile decoding on any device, and how many compiled graphs have run."""
    runs: list[None] = []

    def backend(graph: Any, _example: Any) -> Any:
        def run(*args: Any) -> Any:
            runs.append(None)
            return graph.forward(*args)

        return run

    how = CompileConfig(backend=backend, mode=None)  # type: ignore[arg-type]
    how._compile_all_devices = True  # type: ignore[assignment]
    torch.compiler.reset()  # a process that compiled a lot would fall back to eager steps unseen
    kept = {name: vars(subject.model).pop(name, None) for name in _COMPILED}
    try:
        yield {"cache_implementation": "static", "compile_config": how}, lambda: len(runs)
    finally:
        for name, value in kept.items():
            vars(subject.model).pop(name, None)
            if value is not None:
                setattr(subject.model, name, value)


_COMPILED = ("_compiled_call", "_last_compile_config")
