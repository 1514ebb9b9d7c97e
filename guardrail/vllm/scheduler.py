"""Where a prompt is judged: in the engine core, before its first token leaves.

The worker sends the numbers of a prompt's tokens with the output of the step that completed it.
What passes goes on; what is flagged ends with the refusal; what is steered is put back, and its
last position runs again with the edit, from the cached blocks before it. So no layer runs twice for
what passes, and whatever lies deeper than the edit may be read.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.request import Request, RequestStatus
from vllm.version import __version__

from guardrail.audit import AuditLog
from guardrail.types import Modality
from guardrail.vllm.judge import Asked, Judge, Judged
from guardrail.vllm.options import (
    CHECKED,
    FLAGGED,
    NAME,
    OUTAGE,
    Settings,
    full_attention,
    require_names,
    require_supported,
)
from guardrail.vllm.prompts import Medium, Template

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch


@dataclass(frozen=True, slots=True)
class Edit:
    """How far a request's positions [first, stop) are moved."""

    amount: float
    first: int
    stop: int


@dataclass(slots=True)
class Step:
    """What the guard wants of one step, beside vLLM's own output of the scheduler.

    `judged` are the slots of the tokens of prompts that this step completes.
    """

    judged: dict[str, list[int]] = field(default_factory=dict)
    edits: dict[str, Edit] = field(default_factory=dict)


class GuardScheduler(AsyncScheduler):  # type: ignore[misc]
    """vLLM's scheduler, which lets nothing leave that was not judged."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        settings = Settings.of(self.vllm_config)
        require_supported(self.vllm_config, __version__)
        require_names(self, ("_preempt_request", "prev_step_scheduled_req_ids", "running"))
        model = self.vllm_config.model_config
        tokenizer = cached_tokenizer_from_config(model)
        self._scores, self._asked = settings.scores, settings.asked
        self._audit = None if settings.audit is None else AuditLog(settings.audit)
        self._judge = Judge(settings.load(), settings.policy, Template.of(tokenizer))
        refusal = tokenizer(settings.policy.refusal_message, add_special_tokens=False)["input_ids"]
        # The detokenizer drops the last token of a request that stopped.
        self._refusal = [*refusal, tokenizer.eos_token_id or refusal[-1]]
        self._group, self._block = full_attention(self.kv_cache_config)
        self._secret = secrets.token_bytes(16)
        self._judged: dict[str, Judged] = {}
        self._told: dict[str, dict[str, Any]] = {}  # of verdicts, which each output carries
        self._edits: dict[str, Edit] = {}
        self._again: list[Request] = []
        self._held: dict[str, Any] = {}  # log-probabilities of prompts that run again

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """The next step of vLLM, with what the guard wants of it."""
        output = super().schedule(*args, **kwargs)
        step = Step()
        for name in output.num_scheduled_tokens:
            request = self.requests[name]
            if name in self._edits:
                step.edits[name] = self._edits[name]
            elif name not in self._judged and self._is_read(request):
                step.judged[name] = self._slots(request)
        setattr(output, NAME, step)
        return output

    def _is_read(self, request: Request) -> bool:
        """Whether the last scheduled step completes a prompt."""
        return bool(request.num_computed_tokens >= request.num_prompt_tokens)

    def _slots(self, request: Request) -> list[int]:
        """Where the numbers of a prompt's tokens are."""
        blocks = self.kv_cache_manager.get_block_ids(request.request_id)[self._group]
        size = self._block
        return [blocks[at // size] * size + at % size for at in range(request.num_prompt_tokens)]

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """What leaves the engine core after a step: no token that was not judged to."""
        numbers: dict[str, torch.Tensor] = getattr(model_runner_output, NAME, None) or {}
        for name, found in numbers.items():
            request = self.requests.get(name)
            if request is not None and name not in self._judged:
                judged = self._keep(request, self._verdict_on(request, found))
                told = model_runner_output.prompt_logprobs_dict
                if judged.amount and told.get(name) is not None:
                    self._held[name] = told.pop(name)
        outputs = super().update_from_output(scheduler_output, model_runner_output)
        for batch in outputs.values():
            for out in batch.outputs:
                self._tell(out)
        for request in self._again:
            self._run_again(request)
        self._again.clear()
        for name in scheduler_output.finished_req_ids:
            self._judged.pop(name, None)
            self._told.pop(name, None)
            self._edits.pop(name, None)
            self._held.pop(name, None)
        return outputs

    def _update_request_with_output(
        self, request: Request, new_token_ids: list[int], is_stale: bool = False
    ) -> tuple[list[int], bool]:
        name = request.request_id
        judged = self._judged.get(name)
        if judged is None:  # a token is about to leave, and nobody saw its prompt
            judged = self._keep(request, self._judge.outage())
        if judged.stops:
            request.status = RequestStatus.FINISHED_STOPPED
            request.stop_reason = FLAGGED if judged.verdict.reason == "score" else OUTAGE
            request.resumable = False
            return [], True
        if judged.check:
            request.status = RequestStatus.FINISHED_STOPPED
            request.stop_reason, request.resumable = CHECKED, False
            return [], True
        if judged.amount and name not in self._edits:
            last = request.num_prompt_tokens - 1
            self._edits[name] = Edit(judged.amount, last, last + self._judge.steered_positions)
            self._again.append(request)
            return [], False
        found: tuple[list[int], bool] = super()._update_request_with_output(
            request, new_token_ids, is_stale
        )
        return found

    def _verdict_on(self, request: Request, numbers: torch.Tensor) -> Judged:
        """The verdict on a prompt by its tokens' numbers.

        What goes on later (a session), has no tokens, or holds other media than pictures cannot be
        judged.
        """
        asked = self._asked_of(request)
        media = _media(request, asked.kinds)
        if media is None or request.prompt_token_ids is None or request.resumable:
            return self._judge.outage()
        return self._judge(numbers, request.prompt_token_ids, media, asked.floor)

    def _asked_of(self, request: Request) -> Asked:
        extra = request.sampling_params.extra_args if self._asked else None
        return Asked.of(extra)

    def _keep(self, request: Request, judged: Judged) -> Judged:
        """Remember what becomes of a request, and put it on record."""
        name, check = request.request_id, self._asked_of(request).check
        judged = self._judged[name] = replace(judged, check=check)
        self._told[name] = {NAME: judged.verdict.told(scores=self._scores)}
        if self._audit is not None:
            self._audit(judged.verdict, {"event": "verdict", "request_id": name})
        return judged

    def _tell(self, out: Any) -> None:
        """Put the verdict on an output, and the refusal in the place of a flagged answer."""
        judged = self._judged.get(out.request_id)
        if judged is None:
            return
        out.kv_transfer_params = (out.kv_transfer_params or {}) | self._told[out.request_id]
        if out.request_id in self._held:
            out.new_prompt_logprobs_tensors = self._held.pop(out.request_id)
        if judged.stops:
            out.new_token_ids = list(self._refusal)  # not earlier: a grammar would reject them
            out.new_logprobs = None
            out.new_prompt_logprobs_tensors = None

    def _run_again(self, request: Request) -> None:
        """Put a request back whose last position is to be edited.

        What is computed from there on is found under names that nobody else can have, so that no
        other prompt is served from it.
        """
        first = (request.num_prompt_tokens - 1) // self._hash_size
        hasher = request._block_hasher
        if hasher is not None:
            request._block_hasher = self._salted(hasher)
            request.block_hashes[first:] = map(self._salt, request.block_hashes[first:])
        if request.status is RequestStatus.RUNNING:  # else it lost its blocks, and begins anew
            self.running.remove(request)
            self._preempt_request(request, time.monotonic(), drop_stale_output=True)
            self.prev_step_scheduled_req_ids.discard(request.request_id)

    @property
    def _hash_size(self) -> int:
        return int(self.kv_cache_config.hash_block_size or self._block)

    def _salted(self, hasher: Callable[[Request], list[bytes]]) -> Callable[[Request], list[bytes]]:
        return lambda request: [self._salt(found) for found in hasher(request)]

    def _salt(self, name: bytes) -> bytes:
        return hashlib.sha256(self._secret + name).digest()


def _media(request: Request, kinds: Sequence[str] | None) -> list[Medium] | None:
    """The pictures of a request, in the order of the prompt; None if it has other media.

    Videos are among these: vLLM gives their tokens other positions than transformers.
    `kinds` are what they were to who asked, if that is known.
    """
    if any(one.modality != Modality.IMAGE for one in request.mm_features or ()):
        return None
    found = [
        Medium(
            Modality.IMAGE,
            one.mm_position.offset,
            one.mm_position.offset + one.mm_position.length,
        )
        for one in request.mm_features or ()
    ]
    found.sort(key=lambda one: one.start)
    if kinds is None:
        return found
    if len(kinds) != len(found):
        return None
    named = zip(found, kinds, strict=True)
    return [replace(one, kind=Modality(kind)) for one, kind in named]
