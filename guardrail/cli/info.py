"""`guardrail info`: what an artefact holds, or what a guard would find in a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from guardrail.cli import options as o
from guardrail.cli.output import session, write_json, write_rows
from guardrail.cli.report import show_artefact
from guardrail.cli.requests import read_artefact


def info(
    name: Annotated[
        str, typer.Argument(metavar="ARTEFACT|MODEL", help="An artefact's file, or a model.")
    ],
    device: o.Device = None,
    dtype: o.Dtype = "auto",
    revision: o.Revision = None,
    trust_remote_code: o.TrustRemoteCode = False,
    as_json: o.AsJson = False,
    debug: o.Debug = False,
) -> None:
    """Describe an artefact (a .safetensors file or its folder) or a model (a folder or hub id)."""
    loading = o.Loading(
        device=device, dtype=dtype, revision=revision, trust_remote_code=trust_remote_code
    )
    with session(debug=debug) as stdout:
        if _is_artefact(name):
            show_artefact(stdout, read_artefact(name), as_json=as_json)
            return
        known = _model_facts(name, loading)
        if as_json:
            write_json(stdout, known)
        else:
            write_rows(stdout, [(key, str(value)) for key, value in known.items()])


def _is_artefact(name: str) -> bool:
    path = Path(name)
    holds_no_model = path.is_dir() and not (path / "config.json").exists()
    return path.is_file() or path.suffix == ".safetensors" or holds_no_model


def _model_facts(name: str, loading: o.Loading) -> dict[str, object]:
    from guardrail.model.decoder import decoder_layers
    from guardrail.model.fingerprint import fingerprint
    from guardrail.model.load import load_model

    loaded = load_model(name, **loading.keywords())
    decoder_layers(loaded.model)  # a model a guard cannot work inside says so here
    return {
        "source": loaded.source,
        "layers": loaded.layer_count,
        "d_model": loaded.d_model,
        "pictures": loaded.is_multimodal,
        "device": str(loaded.device),
        "fingerprint": fingerprint(loaded).model_dump(mode="json"),
    }
