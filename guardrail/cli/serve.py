"""`guardrail serve`: the guarded model behind HTTP."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

from guardrail.cli import options as o
from guardrail.cli import serve_options as s
from guardrail.cli.derived import Derived
from guardrail.cli.output import session
from guardrail.extras import require
from guardrail.model.source import LoadingOptions
from guardrail.server.keys import read_keys
from guardrail.server.settings import Listening, ServerSettings, UpstreamOptions

if TYPE_CHECKING:
    from guardrail.audit import Audit, AuditLog
    from guardrail.policy import Policy
    from guardrail.server.keys import ApiKey
    from guardrail.server.observing import Observation
    from guardrail.server.process import Start
    from guardrail.server.reload import GuardSource
    from guardrail.server.service import Answerer, Service

_RULES = Derived(env=s.ENV, only=frozenset({"policy", "judged", "allow_mismatch"}))
_RECORD = Derived(env=s.ENV, panel="Log and audit")


def serve(
    *,
    model: s.Model,
    artefact: s.Artefact,
    access: Annotated[s.KeyOptions, s.SERVED],
    server: Annotated[ServerSettings, s.SERVED],
    listening: Annotated[Listening, s.SERVED],
    record: Annotated[s.RecordOptions, _RECORD],
    upstream: Annotated[UpstreamOptions, s.UPSTREAM],
    upstream_key: Annotated[s.UpstreamKey, s.UPSTREAM],
    guarding: Annotated[o.GuardOptions, _RULES],
    loading: Annotated[LoadingOptions, s.SERVED],
    engine: s.EngineName = "transformers",
    vllm: s.VllmWords = None,
    debug: o.Debug = False,
) -> None:
    """Answer over HTTP in the form of the OpenAI API, under guard.

    SIGHUP reads artefact, policy and keys again; SIGTERM ends once answers under way are out. It is
    one process, because the model is in it: for more, start more, or see `guardrail cluster`. With
    `--engine vllm` vLLM runs the model, in processes of its own, and reads keys alone again.
    """
    with session(debug=debug):
        require("fastapi")
        from guardrail.server import logs
        from guardrail.server.listening import require_usable
        from guardrail.server.process import starting

        logs.configure(style=record.log_format, level=record.log_level)
        keys_again = partial(read_keys, access.api_keys)
        insecure = access.insecure_no_keys or listening.unix_socket is not None
        settings = server.kept_to(keys_again(), listening.host, insecure=insecure)
        answerer = s.upstream_answerer(upstream, upstream_key)
        with (
            starting() as start,
            record.audit_log() as log,
            observing(settings.model_name, log, otel=record.otel, engine=engine) as seen,
        ):
            require_usable(listening)
            how = s.engine_options(engine, loading, vllm or [])
            with guard_source(model, artefact, guarding, how, settings, log) as source:
                _answer(source, settings, listening, keys_again, seen, answerer, start)


@contextmanager
def guard_source(
    model: str,
    artefact: str,
    guarding: o.GuardOptions,
    how: Mapping[str, Any],
    settings: ServerSettings,
    audit: Audit | None,
) -> Iterator[GuardSource]:
    """The model, loaded once the artefact and the policy were found readable.

    Raises:
        GuardrailError: a file cannot be read, or the model cannot be loaded.
    """
    from guardrail.artefact import Artefact
    from guardrail.server.reload import GuardSource, opened
    from guardrail.server.service import served_policy

    def rules() -> Policy:
        return served_policy(guarding.rules(), settings)

    rules()
    Artefact.from_pretrained(artefact)

    from transformers.utils import logging as transformers_logging

    # the log has one event a line, in its one form
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()

    with opened(model, allow_mismatch=guarding.allow_mismatch, **how) as open_guard:
        yield GuardSource(open_guard=open_guard, artefact=artefact, read_policy=rules, audit=audit)


@contextmanager
def observing(
    model_name: str, log: AuditLog | None, *, otel: bool, engine: s.EngineName = "transformers"
) -> Iterator[Observation]:
    """The server's metrics and spans, for the block; spans that wait are sent at its end.

    Metrics stand beside vLLM's own where that is the engine.

    Raises:
        MissingExtraError: spans are asked for, and the extra `otel` is not installed.
    """
    from guardrail import __version__
    from guardrail.server.observing import Observation, spans_asked_for

    traces = None
    if otel or spans_asked_for():
        from guardrail.observe.tracing import tracer_provider

        traces = tracer_provider(__version__)
    observation = Observation(model=model_name, audit_log=log, traces=traces, engine=engine)
    try:
        yield observation
    finally:
        observation.close()


def _answer(
    source: GuardSource,
    settings: ServerSettings,
    listening: Listening,
    keys_again: Callable[[], tuple[ApiKey, ...]],
    seen: Observation,
    answerer: Callable[[Service], Answerer] | None,
    start: Start,
) -> None:
    """Warm the model up, then serve until a signal comes."""
    from guardrail.server.app import LocalAnswerer, create_app
    from guardrail.server.process import serve as run
    from guardrail.server.reload import Reloader

    source.warm_up()
    guard = source.make()
    app = create_app(guard, settings, observation=seen, answerer=answerer or LocalAnswerer)
    reloader = Reloader(app.state.service, guard, source.make, keys_again)
    facts = {
        "model": settings.model_name,
        "artefact": guard.artefact.artefact_id,
        "mode": guard.policy.mode,
        "keys": len(settings.keys),
        "trusted": sum(key.trusted for key in settings.keys),
    }
    try:
        run(app, listening, reloader, facts=facts, start=start)
    finally:
        reloader.close()
