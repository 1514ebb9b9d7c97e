"""What vLLM is started with, and what it is refused with.

The guard is inside vLLM by three of its own switches: a worker class, a scheduler class, and an
entry of `additional_config`, which is part of the key of vLLM's compile cache.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self, get_args

from pydantic import BaseModel, ConfigDict

from guardrail.artefact import Artefact
from guardrail.errors import ArtefactMismatchError, ConfigurationError
from guardrail.extras import require
from guardrail.policy import Policy
from guardrail.policy.policy import Judged

if TYPE_CHECKING:
    from collections.abc import Sequence

NAME = "guardrail"  # of the entry in additional_config
WORKER = "guardrail.vllm.worker.GuardWorker"
SCHEDULER = "guardrail.vllm.scheduler.GuardScheduler"
MIDDLEWARE = "guardrail.vllm.middleware.GuardMiddleware"  # of its server
FLAGGED, OUTAGE, CHECKED = "guardrail:flag", "guardrail:error", "guardrail:check"
STOPS = (FLAGGED, OUTAGE)  # stop reasons of requests that get no answer
EVERYBODY: frozenset[Judged] = frozenset(get_args(Judged))
TESTED = ("0.32", "0.33")  # 0.32 was run, of 0.33 every name that is used was compared


class Settings(BaseModel):
    """The entry in `additional_config`; `artefact_id` is that of the file when it was written.

    With `scores` clients are told scores and thresholds; `audit` is a file of verdicts. With
    `asked` a request's extra arguments are a guard's own, which no client may write: see
    `guardrail.vllm.judge.Asked`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    artefact: Path
    artefact_id: str
    policy: Policy = Policy()
    allow_mismatch: bool = False
    scores: bool = True
    audit: Path | None = None
    asked: bool = False

    @classmethod
    def of(cls, config: Any) -> Self:
        """Those in a vLLM configuration.

        Raises:
            ConfigurationError: there are none.
        """
        given = config.additional_config
        if not isinstance(given, dict) or NAME not in given:
            raise ConfigurationError(
                f"vLLM was started without additional_config[{NAME!r}]; start it with what "
                "`guardrail.vllm.engine_options` gives"
            )
        return cls.model_validate(given[NAME])

    def load(self) -> Artefact:
        """The artefact, which must be the one that was named.

        Raises:
            ArtefactMismatchError: the file holds another one now.
            ArtefactError: it is none.
        """
        found = Artefact.load(self.artefact)
        if found.header.artefact_id != self.artefact_id:
            named = {"artefact_id": (self.artefact_id, found.header.artefact_id)}
            raise ArtefactMismatchError(named)
        return found


def engine_options(
    artefact: str | Path,
    policy: Policy | None = None,
    *,
    allow_mismatch: bool = False,
    scores: bool = True,
    audit: str | Path | None = None,
    asked: bool = False,
) -> dict[str, Any]:
    """Options for `vllm.LLM(model, **options)` and vLLM's engine arguments.

    Args:
        artefact: a file that was fitted on the model.
        policy: None judges everybody's words, system prompts and answers among them: where clients'
            texts are tokenised with control tokens, roles can be forged. Steered requests are
            judged as elsewhere; `on_flag="raise"` ends a request as "refuse" does, and only the
            middleware of `vllm serve` makes an error of it.
        allow_mismatch: serve another model than the artefact was fitted on.
        scores: tell whoever asks the score, the thresholds and where in the prompt it is from; they
            help a search for a request that passes.
        audit: append each verdict to this file as a JSON line, without what was asked.
        asked: requests' extra arguments are the guard's own (see `Settings`).

    Raises:
        ArtefactError: the file is no artefact.
        ConfigurationError: answers are to be watched, or requests folded for them.
    """
    if policy is not None and policy.watch is not None:
        raise ConfigurationError(
            f"answers are not watched inside vLLM; leave `watch` ({policy.watch}) out of the "
            "policy, or let transformers run the model"
        )
    if policy is not None and policy.fold_answers:
        raise ConfigurationError(
            "nothing is folded inside vLLM; leave `fold_answers` out of the policy, or let "
            "transformers run the model"
        )
    path = Path(artefact).resolve()
    settings = Settings(
        artefact=path,
        artefact_id=Artefact.load(path).header.artefact_id,
        policy=policy or Policy(judge=EVERYBODY),
        allow_mismatch=allow_mismatch,
        scores=scores,
        audit=None if audit is None else Path(audit).resolve(),
        asked=asked,
    )
    return {
        "worker_cls": WORKER,
        "scheduler_cls": SCHEDULER,
        "additional_config": {NAME: settings.model_dump(mode="json", exclude_defaults=True)},
    }


def parsed(words: Sequence[str]) -> dict[str, Any]:
    """Options of `vllm serve` as engine arguments by their names in Python; those given alone.

    Raises:
        ConfigurationError: one is not vLLM's, has an impossible value, or is the guard's own.
        MissingExtraError: vLLM is not installed.
    """
    require("vllm")
    from vllm import AsyncEngineArgs
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class Parser(FlexibleArgumentParser):  # type: ignore[misc]
        def error(self, message: str) -> NoReturn:
            raise ConfigurationError(f"vLLM's options: {message}")

    parser = AsyncEngineArgs.add_cli_args(Parser(add_help=False))
    given, plain = (vars(parser.parse_args(list(said))) for said in (words, ()))
    found = {name: value for name, value in given.items() if value != plain[name]}
    own = sorted(found.keys() & {"model", "worker_cls", "scheduler_cls", "additional_config"})
    if own:
        raise ConfigurationError(f"{', '.join(own)}: these of vLLM's options are the guard's own")
    return found


def require_supported(config: Any, version: str) -> None:
    """Refuse what was not tested, or cannot be judged, before the model is loaded.

    Args:
        config: a vLLM configuration.
        version: vLLM's.

    Raises:
        ConfigurationError: with everything that is in the way.
    """
    parallel = config.parallel_config
    wrong = {
        f"vLLM {version} (tested: {', '.join(TESTED)})": not version.startswith(
            tuple(f"{one}." for one in TESTED)
        ),
        f"worker_cls is not {WORKER}": parallel.worker_cls != WORKER,
        f"scheduler_cls is not {SCHEDULER}": _name(config.scheduler_config.scheduler_cls)
        != SCHEDULER,
        "speculative decoding": config.speculative_config is not None,
        "pipeline parallelism": parallel.pipeline_parallel_size > 1,
        "context parallelism": _several(
            parallel, ("decode_context_parallel_size", "prefill_context_parallel_size")
        ),
        "micro-batches (dual batch overlap)": bool(parallel.use_ubatching),
        "LoRA adapters": config.lora_config is not None,
        "a KV connector": config.kv_transfer_config is not None,
        "a pooling model": config.model_config.runner_type != "generate",
        "a model with an encoder": bool(config.model_config.is_encoder_decoder),
    }
    found = [name for name, bad in wrong.items() if bad]
    if found:
        raise ConfigurationError(
            f"the guard does not run inside vLLM with: {'; '.join(found)}. Start vLLM with what "
            "`guardrail.vllm.engine_options` gives, and without these"
        )


def require_names(owner: object, names: Sequence[str]) -> None:
    """Refuse a vLLM whose inner names are not those that the guard was tested with.

    Raises:
        ConfigurationError: with those that are missing.
    """
    missing = [name for name in names if not hasattr(owner, name)]
    if missing:
        raise ConfigurationError(
            f"this vLLM's {type(owner).__name__} has no {', '.join(missing)}; the guard was tested "
            f"with vLLM {', '.join(TESTED)}"
        )


def full_attention(config: Any) -> tuple[int, int]:
    """Which group of a KV cache configuration keeps every position, and its block size.

    Raises:
        ConfigurationError: none does, so that no token's numbers can be kept beside it.
    """
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    for number, group in enumerate(config.kv_cache_groups):
        if isinstance(group.kv_cache_spec, FullAttentionSpec):
            return number, int(group.kv_cache_spec.block_size)
    raise ConfigurationError(
        "the model has no layer with full attention, whose cache keeps every position of a prompt"
    )


def _several(parallel: Any, names: Sequence[str]) -> bool:
    return any(getattr(parallel, name, 1) > 1 for name in names)


def _name(scheduler: Any) -> str:
    if isinstance(scheduler, type):
        return f"{scheduler.__module__}.{scheduler.__qualname__}"
    return str(scheduler)
