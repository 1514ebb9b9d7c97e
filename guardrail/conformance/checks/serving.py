"""The guard as callers meet it: streams, threads, videos."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from guardrail.conformance import reference
from guardrail.conformance.answers import registered
from guardrail.conformance.outcomes import Figures, expect
from guardrail.conformance.subject import TOKENS, rules
from guardrail.conformance.trace import traced
from guardrail.conformance.trio import trio
from guardrail.guard import Guard
from guardrail.model.generate import RowControl, generate_rows
from guardrail.model.settings import Settings
from guardrail.types import Action

if TYPE_CHECKING:
    from guardrail.conformance.subject import Subject
    from guardrail.model.prefill import Ruling
    from guardrail.types import Request, Result

_ROUNDS = 3


def stream(subject: Subject) -> Figures:
    """The verdict is there before the first token; the chunks are the answer."""
    artefact = subject.directions.artefact(subject.layers.read)
    passes = _passes_at_the_verdict(subject)
    request = subject.texts[0].request
    with Guard(subject.loaded, artefact, policy=rules()) as guard:
        chunks, known = [], []
        # a model's own config may ask for samples, which differ from call to call
        with guard.stream(request, max_new_tokens=TOKENS, temperature=0) as parts:
            for chunk in parts:
                known.append(parts.verdict is not None)
                chunks.append(chunk)
        answer = guard.generate(request, max_new_tokens=TOKENS, temperature=0)
        expect(all(known), "a chunk came before the verdict")
        expect("".join(chunks) == answer.text, "the chunks are not the answer")
        strict = guard.with_policy(rules(flag=-1e6))
        with strict:
            refused = list(strict.stream(request, max_new_tokens=TOKENS))
            expect(
                refused == [strict.policy.refusal_message],
                "a flagged request's stream holds more than the refusal",
            )
    return {"chunks": len(chunks), "passes_before_the_verdict": passes}


def _passes_at_the_verdict(subject: Subject) -> int:
    """Decoder passes before the ruling is handed out, which has to come before any token."""
    detector = subject.detector(subject.directions.artefact(subject.layers.read), rules())
    order: list[str] = []
    passes: list[int] = []

    def token(_token: int) -> bool:
        order.append("token")
        return False

    def ruled(_ruling: Ruling) -> None:
        order.append("ruling")
        passes.append(trace.passes)

    with registered(subject.model, detector) as hooks, traced(subject.model) as trace:
        control = RowControl(on_ruling=ruled, on_token=token)
        generate_rows(
            subject.loaded,
            subject.encode(subject.texts[:1]),
            detector,
            Settings(max_new_tokens=TOKENS, do_sample=False),
            [control],
            policy=detector.policy,
            hooks=hooks,
        )
    expect(order[:1] == ["ruling"] and order.count("ruling") == 1, f"it went {order}")
    expect(passes == [1], f"the verdict came after {passes} passes of the decoder")
    return passes[0]


def concurrency(subject: Subject) -> Figures:
    """Threads with different requests each get their own verdict and answer."""
    case = trio(subject)
    requests = [text.request for text in subject.texts] * _ROUNDS
    wanted = case.actions * _ROUNDS
    plain = reference.generate(subject.model, subject.text_inputs, TOKENS)
    with Guard(subject.loaded, case.artefact, policy=case.policy) as guard:

        def ask(request: Request) -> Result:
            return guard.generate(request, max_new_tokens=TOKENS, temperature=0)

        with ThreadPoolExecutor(max_workers=4) as pool:
            results = list(pool.map(ask, requests))
    bound = max(subject.tolerance(case.artefact, text.states) for text in subject.texts)
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
        elif action is Action.PASS and subject.exact:
            expect(list(result.token_ids) == plain[row], f"text {row} got another answer")
    return {"threads": 4, "requests": len(results)}
