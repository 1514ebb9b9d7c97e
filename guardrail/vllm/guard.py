"""A guard whose model vLLM runs: requests are rendered here, judged and answered there.

The verdict comes with a request's first output. Nothing is decided on this side: it is put into the
words of the request (which window of a video, in what words), on record, and before the answer.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from guardrail.errors import ConfigurationError, DetectorError, UnsupportedContentError
from guardrail.guard import Guard, found_artefact
from guardrail.model.generate import RowOutcome
from guardrail.online.answering import Answering, placed
from guardrail.online.core import Core
from guardrail.online.engine import require_room, with_words
from guardrail.online.jobs import verdict_facts
from guardrail.policy import Policy
from guardrail.types import Verdict
from guardrail.vllm.host import VllmModel
from guardrail.vllm.judge import Asked
from guardrail.vllm.options import NAME, STOPS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from guardrail.artefact import Artefact
    from guardrail.artefact.header import Fingerprint
    from guardrail.audit import Audit
    from guardrail.model.logprobs import Likely
    from guardrail.model.settings import Settings
    from guardrail.online.jobs import AnswerJob, CheckJob, Floor
    from guardrail.types import Request, Where

NO_VIDEOS = (
    "vLLM does not place videos in a prompt as transformers does, so no threshold holds for them; "
    "send frames as pictures, or serve with transformers"
)


class VllmGuard(Guard):
    """`Guard` on a model that vLLM runs: the same questions, answers, verdicts and errors.

        with VllmGuard("./my-model", "mine.guard.safetensors") as guard:
            guard.generate("What is the capital of France?").text

    vLLM starts a process of its own, so a script makes it behind `if __name__ == "__main__":`.
    Artefact and rules are those it was made with; `with_policy` may change what does not concern
    verdicts, such as limits. Close the guard, and those made from it, to end vLLM.
    """

    def __init__(
        self,
        model: VllmModel | str | Path,
        artefact: Artefact | str | Path,
        *,
        policy: Policy | None = None,
        allow_mismatch: bool = False,
        audit: Audit | None = None,
        **options: Any,
    ) -> None:
        """Start vLLM with `options`, its engine arguments by their names in Python.

        A `VllmModel` is shared: it has its own options, and stays yours to release.

        Raises:
            MissingExtraError: vLLM is not installed.
            ModelLoadError: it did not start; the words of the cause stand in the log.
            ConfigurationError: it runs already, under another artefact or other rules.
        """
        fitted, host = found_artefact(artefact), model
        if not isinstance(host, VllmModel):
            host = VllmModel(host, allow_mismatch=allow_mismatch, options=options)
        try:
            self._assemble(VllmEngine(host, fitted, policy or Policy(), audit), audit)
        finally:
            if host is not model:
                host.release()


class VllmEngine(Core):
    """A model that vLLM runs; each request is on its own, and vLLM batches them."""

    def __init__(
        self, host: VllmModel, artefact: Artefact, policy: Policy, audit: Audit | None
    ) -> None:
        host.run(artefact, policy)
        super().__init__(host, artefact, policy, audit)
        self._host, self.worker = host, host.worker
        self._left = False
        host.lease()

    @property
    def fingerprint(self) -> Fingerprint:
        """That of the fit, which vLLM's worker found the model to have, or was told to allow."""
        return self.artefact.header.fingerprint

    @property
    def context(self) -> int:
        """See `Core`."""
        return self._host.context

    @property
    def generation_config(self) -> Any:
        """See `Core`."""
        return self._host.generation_config

    def under(self, policy: Policy, audit: Audit | None) -> VllmEngine:
        """See `Core`."""
        return VllmEngine(self._host, self.artefact, policy, audit)

    def trouble(self) -> str | None:
        """See `Core`."""
        return self._host.trouble()

    def shutdown(self, *, wait_s: float = 0.0) -> None:
        """See `Core`."""
        self.worker.leave(self, timeout=wait_s)
        if not self._left:
            self._left = True
            self._host.release()

    def require_readable(self, request: Request) -> None:
        """See `Core`; frames that a model is shown as pictures are read."""
        super().require_readable(request)
        if request.videos and self.encoder.video_as == "video":
            raise UnsupportedContentError(NO_VIDEOS)

    async def run_answers(self, jobs: Sequence[AnswerJob]) -> None:
        """Answer the one job there is."""
        (job,) = jobs
        prompt, kinds = await self._prompt(job.request, new_tokens=1)
        ids = prompt["prompt_token_ids"]
        said = partial(with_words, self._host.tokenizer, ids)
        answering = Answering(job, self._host.tokenizer, self._detector, self.record, said)
        finish, tokens = "cancelled", list[int]()
        count = job.settings.logprobs or 0
        room, lark = (
            self._host.context - len(ids),
            None if job.grammar is None else job.grammar.lark,
        )
        settings = sampling(job.settings, self._host, room=room, lark=lark)
        with self.outages([job], [answering]):
            asked = Asked(job.floor.score, kinds=kinds)
            try:
                async with aclosing(
                    self._host.generate(prompt, settings, asked, job.caller.request_id)
                ) as outputs:
                    async for output in outputs:
                        (answer,) = output.outputs
                        stops = answer.stop_reason in STOPS
                        if job.verdict is None:
                            verdict = _verdict(output, job.request, job.floor, said)
                            answering.judged(verdict, stops=stops)
                        if job.cancelled.is_set():
                            break
                        finish = "flag" if stops else answer.finish_reason or finish
                        if not stops and _grown(answering, tokens, answer, count):
                            finish = "stop"
                            break
            except asyncio.CancelledError:
                late = job.deadline is not None and time.monotonic() >= job.deadline
                finish = "timeout" if late else "cancelled"
        answering.end(
            RowOutcome(token_ids=tuple(tokens), finish=finish, ruling=None, prompt_tokens=len(ids))
        )

    async def run_checks(self, jobs: Sequence[CheckJob]) -> None:
        """Judge the one job there is; its copy in plain letters first, where it has one."""
        (job,) = jobs
        floor = job.floor
        if job.folded is not None:
            floor = floor.raised((await self._checked(job, job.folded, floor)).score)
        verdict = await self._checked(job, job.request, floor)
        if job.first_outage is None:  # what a window is of goes on record as a whole
            self.record(verdict, verdict_facts(job))
        job.settle(verdict)

    async def run_given(self, jobs: Sequence[CheckJob]) -> None:
        """Nothing: a policy that has answers watched is refused when vLLM starts."""
        raise ConfigurationError("answers are not watched inside vLLM")

    async def _checked(self, job: CheckJob, request: Request, floor: Floor) -> Verdict:
        prompt, kinds = await self._prompt(request, new_tokens=0)
        settings = sampling(None, self._host, room=1)
        asked, name = Asked(floor.score, True, kinds), job.caller.request_id
        with self.outages([job]):
            async with aclosing(self._host.generate(prompt, settings, asked, name)) as outputs:
                async for output in outputs:
                    said = partial(with_words, self._host.tokenizer, prompt["prompt_token_ids"])
                    # nothing is moved in a request that gets no answer
                    return replace(_verdict(output, request, floor, said), strength=0.0)
            raise DetectorError("vLLM gave no verdict")

    async def _prompt(self, request: Request, *, new_tokens: int) -> Any:
        """A request as the engine takes it; one that is too long is refused before it is run."""
        fits = partial(
            require_room,
            limits=self.policy.limits,
            context=self._host.context,
            videos=bool(request.videos),
            new_tokens=new_tokens,
        )
        prompt = await asyncio.to_thread(self.encoder.prompt, request)
        fits([len(prompt.ids)])  # before pictures, which vLLM's processor puts in
        found = await self._host.rendered(prompt)
        fits([len(found["prompt_token_ids"])])
        return found, prompt.kinds


def _verdict(
    output: Any, request: Request, floor: Floor, said: Callable[[Where], Where]
) -> Verdict:
    told = (output.kv_transfer_params or {}).get(NAME)
    if told is None:
        raise DetectorError("vLLM gave a token of a request that it did not judge")
    return placed(Verdict.from_dict(told), request, floor, said=said)


def _grown(answering: Answering, tokens: list[int], answer: Any, count: int) -> bool:
    """Take more of an answer; true when a stop string is complete and the answer with it."""
    told = answer.logprobs or [None] * len(answer.token_ids)
    for token, found in zip(answer.token_ids, told, strict=True):
        tokens.append(token)
        if answering.take(token, None if found is None else _likely(token, found, count)):
            return True
    return False


def _likely(token: int, found: Mapping[int, Any], count: int) -> Likely:
    """A token's logprob and the `count` likeliest ones; vLLM tells the chosen one's in any case."""
    ranked = sorted(found.items(), key=lambda each: each[1].rank)
    top = [(each, value.logprob) for each, value in ranked if value.rank <= count]
    return found[token].logprob, top


def sampling(
    settings: Settings | None, host: VllmModel, *, room: int, lark: str | None = None
) -> Any:
    """As vLLM's sampling parameters, with the model's own defaults; None is a check.

    `lark` is the grammar of an answer in a form, which vLLM hands to llguidance, too.

    Raises:
        ConfigurationError: beams are asked for.
    """
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams

    common: dict[str, Any] = {"detokenize": False, "output_kind": RequestOutputKind.DELTA}
    if settings is None:
        return SamplingParams(max_tokens=1, temperature=0.0, **common)
    if settings.num_beams > 1:
        raise ConfigurationError("vLLM searches no beams under guard; leave num_beams out")
    config: Any = host.generation_config

    def chosen(name: str, neutral: Any) -> Any:
        own = getattr(settings, name)
        found = getattr(config, name, None) if own is None else own
        return neutral if found is None else found

    drawn: dict[str, Any] = {"temperature": 0.0}
    if settings.samples(config):
        drawn = {
            "temperature": chosen("temperature", 1.0),
            "top_p": chosen("top_p", 1.0),
            "top_k": chosen("top_k", 0),
            "seed": settings.seed,
        }
    if lark is not None:
        common["structured_outputs"] = StructuredOutputsParams(grammar=lark)
    return SamplingParams(
        logprobs=settings.logprobs,
        max_tokens=min(settings.max_new_tokens, room),
        repetition_penalty=chosen("repetition_penalty", 1.0),
        **drawn,
        **common,
    )
