"""What `guardrail serve` is put together from: the log, the keys, the record, the model."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sized
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

import typer

from guardrail.audit import AuditLog
from guardrail.cli.options import Loading
from guardrail.cli.requests import read_policy

if TYPE_CHECKING:
    from guardrail.online.jobs import Audit
    from guardrail.policy import Policy
    from guardrail.server.keys import ApiKey
    from guardrail.server.settings import ServerSettings
    from guardrail.server.source import GuardSource

KEYS_VARIABLE = "GUARDRAIL_API_KEYS"
_log = logging.getLogger("guardrail.serve")


def configure_log(style: str, level: str) -> None:
    """Set the process's log up; an unknown form or level is wrong usage."""
    from guardrail.server import logs

    for given, known, option in (
        (style, get_args(logs.Format), "--log-format"),
        (level, get_args(logs.Level), "--log-level"),
    ):
        if given not in known:
            raise typer.BadParameter(f"{option} is one of {', '.join(known)}; got {given!r}")
    logs.configure(style=cast("logs.Format", style), level=cast("logs.Level", level))


def read_keys(file: Path | None) -> tuple[ApiKey, ...]:
    """The API keys of the file and of the environment.

    Raises:
        ConfigurationError: one cannot be used.
    """
    from guardrail.server.keys import keys_from_file, keys_from_text

    keys: tuple[ApiKey, ...] = ()
    if file is not None:
        keys, warning = keys_from_file(file)
        if warning is not None:
            _log.warning("%s", warning)
    listed = os.environ.get(KEYS_VARIABLE)
    return keys + keys_from_text(listed, source=KEYS_VARIABLE) if listed else keys


def safe_names(host: str, keys: Sized, *, insecure: bool) -> frozenset[str]:
    """The names by which requests may call a server that may listen at this host; none: any.

    Raises:
        ConfigurationError: it would answer everybody who can reach this machine.
    """
    from guardrail.server.binding import hostnames, require_safe_bind

    require_safe_bind(host, keys, insecure=insecure)
    return hostnames(host, keys, insecure=insecure)


@contextmanager
def audit_log(path: Path | None, max_bytes: int, backups: int) -> Iterator[AuditLog | None]:
    """The audit log, for the block; the lines it lost are told at its end."""
    if path is None:
        if max_bytes:
            raise typer.BadParameter("--audit-max-bytes needs --audit FILE")
        yield None
        return
    with AuditLog(path, max_bytes=max_bytes, backups=backups) as log:
        yield log
        if log.dropped:
            _log.error("%d audit lines were not written", log.dropped)


def guard_source(
    model: str,
    artefact: str,
    policy: Path | None,
    loading: Loading,
    settings: ServerSettings,
    audit: Audit | None,
    allow_mismatch: bool,
) -> GuardSource:
    """The model, loaded once the artefact and the policy were found readable.

    Raises:
        GuardrailError: a file cannot be read, or the model cannot be loaded.
    """
    from guardrail.artefact import Artefact
    from guardrail.server.service import served_policy
    from guardrail.server.source import GuardSource

    def rules() -> Policy:
        return served_policy(read_policy(policy), settings)

    rules()
    Artefact.from_pretrained(artefact)

    from transformers.utils import logging as transformers_logging

    from guardrail.model.load import load_model

    # the log has one event a line, in its one form
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.disable_default_handler()
    transformers_logging.enable_propagation()

    return GuardSource(
        loaded=load_model(model, **loading.keywords()),
        artefact=artefact,
        read_policy=rules,
        audit=audit,
        allow_mismatch=allow_mismatch,
    )
