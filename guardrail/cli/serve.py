"""`guardrail serve`: the guarded model behind HTTP."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from guardrail.cli import options as o
from guardrail.cli import serve_access as access
from guardrail.cli import serve_address as address
from guardrail.cli import serve_bounds as bounds
from guardrail.cli import serve_log as logs
from guardrail.cli import serve_options as s
from guardrail.cli import serve_upstream as up
from guardrail.cli.output import session
from guardrail.cli.serve_observe import Otel, observing
from guardrail.cli.serve_parts import (
    audit_log,
    configure_log,
    guard_source,
    read_keys,
    safe_names,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from guardrail.server.keys import ApiKey
    from guardrail.server.listening import Listening
    from guardrail.server.observing import Observation
    from guardrail.server.process import Start
    from guardrail.server.reload import GuardSource
    from guardrail.server.service import Answerer, Service
    from guardrail.server.settings import ServerSettings


def serve(
    model: s.Model,
    artefact: s.Artefact,
    host: address.Host = "127.0.0.1",
    port: address.Port = 8000,
    unix_socket: address.UnixSocket = None,
    tls_cert: address.TlsCert = None,
    tls_key: address.TlsKey = None,
    model_name: address.ModelAlias = "guarded",
    api_keys: access.ApiKeys = None,
    insecure_no_keys: access.Insecure = False,
    expose_scores: access.ExposeScores = None,
    open_metrics: access.OpenMetrics = False,
    open_status: access.OpenStatus = False,
    cors_origin: access.CorsOrigins = None,
    fetch_urls: access.FetchUrls = False,
    max_concurrent: bounds.MaxConcurrent = 64,
    max_per_client: bounds.MaxPerClient = None,
    max_connections: bounds.MaxConnections = 512,
    max_body_bytes: bounds.MaxBodyBytes = 32_000_000,
    max_checks: bounds.MaxChecks = 256,
    default_tokens: bounds.DefaultTokens = 1024,
    timeout: bounds.Timeout = 120.0,
    body_timeout: bounds.BodyTimeout = 30.0,
    header_timeout: bounds.HeaderTimeout = 10.0,
    drain: bounds.Drain = 30.0,
    audit: logs.Audit = None,
    audit_max_bytes: logs.AuditMaxBytes = 0,
    audit_backups: logs.AuditBackups = 5,
    log_format: logs.LogFormat = "json",
    log_level: logs.LogLevel = "info",
    log_prompts: logs.LogPrompts = False,
    otel: Otel = False,
    upstream: up.Url = None,
    upstream_key_env: up.KeyEnv = None,
    upstream_key_file: up.KeyFile = None,
    upstream_model: up.Models = None,
    upstream_timeout: up.Timeout = 600.0,
    upstream_retries: up.Retries = 2,
    upstream_unchecked: up.Unchecked = None,
    upstream_ca: up.CaFile = None,
    upstream_trust_env: up.TrustEnv = False,
    policy: s.Policy = None,
    device: s.Device = None,
    dtype: s.Dtype = "auto",
    revision: s.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
    allow_mismatch: o.AllowMismatch = False,
    debug: o.Debug = False,
) -> None:
    """Answer over HTTP in the form of the OpenAI API, under guard.

    SIGHUP reads artefact, policy and keys again; SIGTERM ends once answers under way are out. It is
    one process, because the model is in it: for more, start more, or see `guardrail cluster`.
    """
    with session(debug=debug):
        configure_log(log_format, log_level)
        from guardrail.server.binding import shown_scores
        from guardrail.server.listening import Listening, require_usable
        from guardrail.server.process import starting
        from guardrail.server.settings import ServerSettings

        keys = read_keys(api_keys)
        insecure = insecure_no_keys or unix_socket is not None
        settings = ServerSettings(
            model_name=model_name,
            keys=keys,
            open_metrics=open_metrics,
            open_status=open_status,
            hostnames=safe_names(host, keys, insecure=insecure),
            expose_scores=shown_scores(expose_scores, keys, insecure=insecure),
            cors_origins=tuple(cors_origin or ()),
            fetch_urls=fetch_urls,
            max_body_bytes=max_body_bytes,
            timeout_s=timeout,
            body_timeout_s=body_timeout,
            max_concurrent=max_concurrent,
            max_per_client=max_per_client,
            max_checks=max_checks,
            default_tokens=default_tokens,
            drain_s=drain,
            log_prompts=log_prompts,
        )
        listening = Listening(
            host=host,
            port=port,
            unix_socket=unix_socket,
            tls_cert=tls_cert,
            tls_key=tls_key,
            max_connections=max_connections,
            header_timeout_s=header_timeout,
        )
        answerer = up.upstream_answerer(
            upstream,
            key_env=upstream_key_env,
            key_file=upstream_key_file,
            models=upstream_model,
            unchecked=upstream_unchecked,
            timeout_s=upstream_timeout,
            retries=upstream_retries,
            ca_file=upstream_ca,
            trust_env=upstream_trust_env,
        )
        loading = o.Loading(
            device=device, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code
        )
        with (
            starting() as start,
            audit_log(audit, audit_max_bytes, audit_backups) as log,
            observing(model_name, log, otel=otel) as seen,
        ):
            require_usable(listening)
            source = guard_source(model, artefact, policy, loading, settings, log, allow_mismatch)
            keys_again = partial(read_keys, api_keys)
            _answer(source, settings, listening, keys_again, seen, answerer, start)


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
    from guardrail.server.app import create_app
    from guardrail.server.chat import LocalAnswerer
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
